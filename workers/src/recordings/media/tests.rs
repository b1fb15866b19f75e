use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn tools(time_limit: Duration) -> Tools {
    Tools { ffmpeg: "ffmpeg".into(), ffprobe: "ffprobe".into(), time_limit }
}

/// Makes a file with ffmpeg, whose options these are.
fn make(file: &Path, options: &str) {
    let mut ffmpeg = std::process::Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error", "-y"]).args(options.split(' ')).arg(file);
    assert!(ffmpeg.status().unwrap().success());
}

/// Makes a program of these lines.
fn script(file: &Path, lines: &str) -> PathBuf {
    std::fs::write(file, format!("#!/bin/sh\n{lines}\n")).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file.to_owned()
}

#[tokio::test]
async fn a_recording_is_known_by_its_content_and_has_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let tools = tools(Duration::from_secs(60));
    for (name, options, seconds, size, codec, extension) in [
        // Its name lies.
        ("long.mp3", "-f lavfi -i testsrc=size=322x180 -f lavfi -i sine -t 2 -f mp4", 2.0, (322, 180), "mpeg4", "mp4"),
        ("short.webm", "-f lavfi -i testsrc=size=320x241 -t 0.4", 0.4, (320, 241), "vp9", "webm"),
    ] {
        let file = folder.path().join(name);
        let codec_option = if codec == "vp9" { "-c:v libvpx-vp9 -deadline realtime" } else { "-c:v mpeg4" };
        make(&file, &format!("{options} {codec_option}"));
        let media = tools.probe(&file).await.unwrap();
        assert!((media.duration_seconds.unwrap() - seconds).abs() < 0.2, "{media:?}");
        let video = media.video.unwrap();
        assert_eq!((video.width, video.height, video.codec.as_deref()), (Some(size.0), Some(size.1), Some(codec)));
        assert_eq!(media.extension, extension);

        let jpeg = folder.path().join("picture.jpg");
        tools.thumbnail(&file, &jpeg).await.unwrap();
        let bytes = std::fs::read(&jpeg).unwrap();
        assert!(bytes.starts_with(&[0xff, 0xd8, 0xff]), "{name} has no JPEG");
        std::fs::remove_file(jpeg).unwrap();
    }
}

#[tokio::test]
async fn sound_alone_is_no_video_even_with_a_cover() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sound");
    make(
        &file,
        "-f lavfi -i sine -f lavfi -i testsrc -t 1 -frames:v 1 -c:v mjpeg -disposition:v attached_pic -f mp3 -map 0 -map 1",
    );
    let media = tools(Duration::from_secs(60)).probe(&file).await.unwrap();
    assert_eq!((media.video, media.extension), (None, "mp3"));
}

#[tokio::test]
async fn what_is_no_recording_is_the_files_fault() {
    let folder = tempfile::tempdir().unwrap();
    let tools = tools(Duration::from_secs(60));
    let film = folder.path().join("film.mp4");
    make(&film, "-f lavfi -i testsrc -t 1 -c:v mpeg4");
    let half = std::fs::read(&film).unwrap();
    let picture = folder.path().join("picture.png");
    make(&picture, "-f lavfi -i testsrc -frames:v 1");
    let list = format!("#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", film.display());
    let sound = folder.path().join("sound.ogg");
    make(&sound, "-f lavfi -i sine -t 1");
    let page = std::fs::read(sound).unwrap();
    let half = &half[..half.len() / 2];
    for bytes in [half, &page[..100], &std::fs::read(picture).unwrap(), list.as_bytes(), b"garbage", b""] {
        let file = folder.path().join("recording.mp4");
        std::fs::write(&file, bytes).unwrap();
        let error = tools.probe(&file).await.unwrap_err();
        assert_eq!(error.fault(), Fault::NoRecording, "{error}");
    }
}

#[tokio::test]
async fn what_the_machine_lacks_is_not_the_files_fault() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("recording.mp4");
    let error = tools(Duration::from_secs(60)).probe(&file).await.unwrap_err();
    assert!(error.fault() == Fault::Machine && error.to_string().contains("No such file"), "{error}");

    let says = folder.path().join("says");
    let refusing = script(&folder.path().join("refusing"), &format!("cat {} >&2; exit 1", says.display()));
    for complaint in [
        "file:recording.mp4: Permission denied",
        "file:recording.mp4: Input/output error",
        "Failed to set value 'mov' for option 'format_whitelist': Option not found",
        "ffprobe: error while loading shared libraries: libwebp.so.7: failed to map segment from shared object",
    ] {
        std::fs::write(&says, complaint).unwrap();
        let tools = Tools { ffprobe: refusing.clone(), ..tools(Duration::from_secs(60)) };
        let error = tools.probe(&file).await.unwrap_err();
        assert!(error.fault() == Fault::Machine && error.to_string().contains(complaint), "{error}");
    }
    let ffprobe = script(&folder.path().join("ffprobe"), "echo no JSON");
    let error = Tools { ffprobe, ..tools(Duration::from_secs(60)) }.probe(&file).await.unwrap_err();
    assert!(matches!(error, ToolError::Report { .. }) && error.fault() == Fault::Machine, "{error}");
}

#[tokio::test]
async fn a_missing_program_names_its_setting() {
    let tools =
        Tools { ffmpeg: "/nowhere/ffmpeg".into(), ffprobe: "/nowhere/ffprobe".into(), time_limit: Duration::MAX };
    for error in [tools.check().unwrap_err(), tools.probe(Path::new("film.mp4")).await.unwrap_err()] {
        assert!(error.fault() == Fault::Machine && error.to_string().contains("recordings.ffprobe"), "{error}");
    }
    Tools { ffprobe: "ffprobe".into(), ..tools }.check().unwrap();
}

#[tokio::test]
async fn a_program_that_hangs_dies_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let lines = format!("sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait", pid = pid.display());
    let hanging = script(&folder.path().join("ffprobe"), &lines);
    let tools = Tools { ffprobe: hanging, ..tools(Duration::from_secs(1)) };
    let error = tools.probe(Path::new("film.mp4")).await.unwrap_err();
    assert!(matches!(error, ToolError::TimedOut { .. }), "{error}");
    let child = std::fs::read_to_string(pid).unwrap();
    while is_running(child.trim()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Killed, and at most not yet reaped by whoever adopted it.
fn is_running(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[tokio::test]
async fn much_output_is_read_and_little_kept() {
    let folder = tempfile::tempdir().unwrap();
    let loud = script(&folder.path().join("ffprobe"), "yes | head -c 9000000; yes n | head -c 9000000 >&2; exit 3");
    let error =
        Tools { ffprobe: loud, ..tools(Duration::from_secs(60)) }.probe(Path::new("film.mp4")).await.unwrap_err();
    assert!(matches!(error, ToolError::Refused { .. }) && error.to_string().len() < MAX_COMPLAINTS + 200, "{error}");
}
