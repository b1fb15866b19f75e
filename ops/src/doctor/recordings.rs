//! What recordings need: the storage, ffprobe and ffmpeg.

use indicatif::HumanBytes;
use rollcall_shared::causes::in_one_line;
use rollcall_shared::config::Settings;
use rollcall_workers::recordings::checkup;

use super::LITTLE_ROOM;
use super::finding::Finding;

pub(super) async fn storage(settings: &Settings) -> Vec<Finding> {
    let url = &settings.storage.url;
    vec![match checkup::storage(settings).await {
        Ok(Some(free)) => {
            let found = format!("{url}: wrote, read and deleted a file; {} free", HumanBytes(free));
            let kept = settings.recordings.min_free_bytes;
            if free < kept {
                let todo = format!(
                    "make room: recordings wait until more is free than recordings.min_free_bytes ({})",
                    HumanBytes(kept)
                );
                Finding::warning("storage", found, todo)
            } else if free < LITTLE_ROOM {
                Finding::warning("storage", found, "make room: a recording may have gigabytes")
            } else {
                Finding::ok("storage", found)
            }
        }
        Ok(None) => Finding::warning(
            "storage",
            format!("the folder of {url} is not there yet"),
            "the recordings worker makes it; if there are recordings already, put storage.url right",
        ),
        Err(error) => {
            let todo = "let this user write there, make room, or put storage.url and recordings.work_dir right";
            Finding::failed("storage", format!("{url}: {}", in_one_line(&error)), todo)
        }
    }]
}

pub(super) async fn ffprobe(settings: &Settings) -> Vec<Finding> {
    vec![match checkup::ffprobe(&settings.recordings).await {
        Ok(version) => Finding::ok("ffprobe", format!("version {version}, knows a video for one")),
        Err(error) => Finding::failed(
            "ffprobe",
            in_one_line(&error),
            "install ffmpeg, or say in recordings.ffprobe where it is; until then no recording is archived",
        ),
    }]
}

pub(super) async fn ffmpeg(settings: &Settings) -> Vec<Finding> {
    vec![match checkup::ffmpeg(&settings.recordings).await {
        Ok(version) => Finding::ok("ffmpeg", format!("version {version}, makes a JPEG of a video")),
        Err(error) => Finding::failed(
            "ffmpeg",
            in_one_line(&error),
            "install an ffmpeg that has a JPEG encoder, or say in recordings.ffmpeg where it is; until then recordings have \
             no thumbnail",
        ),
    }]
}
