//! Whether what recordings need is there: the storage, `ffprobe` and `ffmpeg`, each tried out in the way in which a recording
//! uses it.

use std::time::Duration;

use rollcall_shared::config::{self, Settings};

use super::archive::Archive;
use super::media::Tools;

/// A second of H.264, 64 by 48 pixels, as recorders make it.
const CLASS: &[u8] = include_bytes!("checkup/class.mp4");
/// How long a program may take for it.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Writes a small object to the storage, reads it back and deletes it; how many bytes are free there, or `None` where the
/// storage's folder is not there yet. Nothing else is left or changed, but that the work folder is made in a storage that is
/// there.
///
/// # Errors
/// Which of it cannot be done, and the setting that it depends on.
pub async fn storage(settings: &Settings) -> anyhow::Result<Option<u64>> {
    let Some(archive) = Archive::find(settings)? else { return Ok(None) };
    archive.try_out().await?;
    Ok(Some(archive.room().free_bytes()?))
}

/// Has `recordings.ffprobe` look at a small video; its version.
///
/// # Errors
/// It cannot be started, or does not do it.
pub async fn ffprobe(settings: &config::Recordings) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let video = folder.path().join("class.mp4");
    std::fs::write(&video, CLASS)?;
    Ok(tools(settings).try_ffprobe(&video).await?)
}

/// Has `recordings.ffmpeg` make a thumbnail of a small video; its version.
///
/// # Errors
/// It cannot be started, or does not do it: it has no JPEG encoder, say.
pub async fn ffmpeg(settings: &config::Recordings) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    let video = folder.path().join("class.mp4");
    std::fs::write(&video, CLASS)?;
    Ok(tools(settings).try_ffmpeg(&video, &folder.path().join("class.jpg")).await?)
}

fn tools(settings: &config::Recordings) -> Tools {
    let ffmpeg_timeout = settings.ffmpeg_timeout.min(TIME_LIMIT);
    Tools::new(&config::Recordings { ffmpeg_timeout, ..settings.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_that_only_look_like_ffmpeg_are_found_out() {
        // Both are there, succeed, and do nothing; the second says a version.
        let impostor = |program: &str| config::Recordings {
            ffmpeg: program.into(),
            ffprobe: program.into(),
            ..config::Recordings::default()
        };
        assert!(ffprobe(&impostor("true")).await.unwrap_err().to_string().contains("does not say its version"));
        // ffprobe in ffmpeg's place has a version, and makes no picture.
        assert!(ffmpeg(&impostor("ffprobe")).await.is_err());
        assert!(ffprobe(&impostor("ffmpeg")).await.is_err());
        assert!(
            ffmpeg(&config::Recordings::default()).await.unwrap().starts_with(|first: char| first.is_ascii_digit())
        );
        assert!(ffprobe(&config::Recordings::default()).await.is_ok());
    }
}
