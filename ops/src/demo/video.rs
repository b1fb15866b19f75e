//! The recording that the demo's server has: a few seconds of a test picture with sound.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

pub(super) const SECONDS: i64 = 6;
pub(super) const RESOLUTION: (i32, i32) = (1280, 720);

/// Makes the video in `folder`, with whatever codec this ffmpeg has for MP4.
pub(super) async fn make(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("class.mp4");
    let (width, height) = RESOLUTION;
    let output = Command::new("ffmpeg")
        .args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y"])
        .args(["-f", "lavfi", "-i", &format!("testsrc2=size={width}x{height}:rate=15:duration={SECONDS}")])
        .args(["-f", "lavfi", "-i", &format!("sine=frequency=440:duration={SECONDS}")])
        .args(["-pix_fmt", "yuv420p", "-movflags", "+faststart"])
        .arg(&path)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("cannot start ffmpeg, which the recordings worker needs too: is it installed?")?;
    if !output.status.success() {
        bail!("ffmpeg cannot make the test video: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(path)
}
