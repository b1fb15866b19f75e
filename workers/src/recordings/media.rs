//! What a file is by its content, and a picture of it: `ffprobe` and `ffmpeg`, held on a short lead.
//!
//! The file comes from another machine. The programs may open nothing but files, read only formats that recordings have
//! (no playlist, which could name other files), have an environment without anything to tell, may need only so much of this
//! machine ([`limits`]), and die with their children.

mod limits;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rollcall_shared::config;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use self::limits::Limits;
use crate::cause::Told;

/// In pixels; the height follows and is even.
const THUMBNAIL_WIDTH: u32 = 640;
/// The demuxers of what recorders make, by ffmpeg's names.
const FORMATS: &str = "mov,mp4,m4a,matroska,webm,ogg,mp3,aac,wav,flac,avi,flv,mpegts,mpeg";
/// The most that is kept of a program's output, in bytes; ffprobe's report has about 4 KB.
const MAX_OUTPUT: usize = 1024 * 1024;
/// The most that is kept of a program's complaints, in bytes.
const MAX_COMPLAINTS: usize = 2 * 1024;
/// How ffprobe says that the data are at fault, in its own words and its demuxers'. Whatever else it says is of this machine:
/// a file that it may not open, memory, an option that it is too old for; and a disk, which it cannot always tell from a
/// file that is cut off.
const BAD_DATA: [&str; 5] = [
    "Invalid data found when processing input",
    "moov atom not found",
    "File ended prematurely",
    "End of file",
    "Format not on whitelist",
];

/// The two programs.
#[derive(Debug)]
pub(super) struct Tools {
    ffmpeg: PathBuf,
    ffprobe: PathBuf,
    time_limit: Duration,
}

/// What a recording is by its content.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Media {
    pub(super) duration_seconds: Option<f64>,
    /// The picture; `None` if there is only sound.
    pub(super) video: Option<Video>,
    /// What such a file is usually called.
    pub(super) extension: &'static str,
}

/// The picture of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Video {
    pub(super) width: Option<i32>,
    pub(super) height: Option<i32>,
    pub(super) codec: Option<String>,
}

/// Why a program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// The machine lacks it.
    #[error("{program} cannot be started; the setting recordings.{setting} says where it is")]
    Start { program: PathBuf, setting: &'static str, source: std::io::Error },
    /// It did not end.
    #[error("{program} did not finish within {limit:?} (recordings.ffmpeg_timeout)")]
    TimedOut { program: PathBuf, limit: Duration },
    /// Its output could not be read.
    #[error("{program} could not be waited for")]
    Wait { program: PathBuf, source: std::io::Error },
    /// Nobody could limit what it needs.
    #[error("{program} cannot be limited in what it needs")]
    Unlimited { program: PathBuf, source: std::io::Error },
    /// It needed more than a recording may, and was ended or gave up, or crashed over it.
    #[error("{program} was ended: {why}")]
    Limited { program: PathBuf, why: String },
    /// Somebody killed it: this machine has too little memory, say.
    #[error("{program} was killed ({status})")]
    Killed { program: PathBuf, status: ExitStatus },
    /// It has given up, and says why.
    #[error("{program} says: {complaints}")]
    Refused { program: PathBuf, complaints: String },
    /// It is content, and what it says cannot be read: another program, or one of another time.
    #[error("{program} reports what is not understood here")]
    Report { program: PathBuf, source: serde_json::Error },
    /// The file has neither picture nor sound.
    #[error("neither picture nor sound is in it")]
    NoMedia,
}

/// Whose fault it is that a program did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file's, which is no recording.
    NoRecording,
    /// The file's, which needs more than a recording may.
    TooCostly,
    /// This machine's: the same file may fare better later.
    Machine,
}

impl ToolError {
    /// The error, with the word that dead letters are grouped by.
    pub(super) fn told(self) -> Told {
        let cause = match self.fault() {
            Fault::NoRecording => "recording-unreadable",
            Fault::TooCostly => "recording-too-costly",
            Fault::Machine => "ffmpeg",
        };
        Told::new(cause, self)
    }

    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::NoMedia => Fault::NoRecording,
            Self::Limited { .. } => Fault::TooCostly,
            Self::Refused { complaints, .. } if BAD_DATA.iter().any(|words| complaints.contains(words)) => {
                Fault::NoRecording
            }
            _ => Fault::Machine,
        }
    }
}

impl Tools {
    pub(super) fn new(settings: &config::Recordings) -> Self {
        Self { ffmpeg: settings.ffmpeg.clone(), ffprobe: settings.ffprobe.clone(), time_limit: settings.ffmpeg_timeout }
    }

    /// Whether `ffprobe` is there: without it nothing can be archived, and that is better known before a long download.
    pub(super) fn check(&self) -> Result<(), ToolError> {
        // A name alone is looked for in PATH, a path is taken as it is; joining an absolute one changes nothing.
        let folders = match self.ffprobe.components().count() {
            1 => std::env::var_os("PATH").unwrap_or_default(),
            _ => OsString::from("."),
        };
        if std::env::split_paths(&folders).any(|folder| folder.join(&self.ffprobe).is_file()) {
            return Ok(());
        }
        let source = std::io::ErrorKind::NotFound.into();
        Err(ToolError::Start { program: self.ffprobe.clone(), setting: "ffprobe", source })
    }

    /// The version of `ffprobe`, if it knows the video for one.
    pub(super) async fn try_ffprobe(&self, video: &Path) -> Result<String, ToolError> {
        let version = self.version("ffprobe", &self.ffprobe).await?;
        self.probe(video).await?.video.ok_or(ToolError::NoMedia)?;
        Ok(version)
    }

    /// The version of `ffmpeg`, if it makes a thumbnail of the video.
    pub(super) async fn try_ffmpeg(&self, video: &Path, jpeg: &Path) -> Result<String, ToolError> {
        let version = self.version("ffmpeg", &self.ffmpeg).await?;
        self.thumbnail(video, jpeg).await?;
        Ok(version)
    }

    /// `ffmpeg version 5.1.9 Copyright …`
    async fn version(&self, setting: &'static str, program: &Path) -> Result<String, ToolError> {
        let said = self.run(setting, Command::new(program).arg("-version")).await?;
        let said = String::from_utf8_lossy(&said);
        let version = said.lines().next().and_then(|line| line.split_once(" version ")?.1.split(' ').next());
        let complaints = "it does not say its version: another program".to_owned();
        version.map(str::to_owned).ok_or_else(|| ToolError::Refused { program: program.to_owned(), complaints })
    }

    /// What the file is.
    pub(super) async fn probe(&self, file: &Path) -> Result<Media, ToolError> {
        let mut ffprobe = Command::new(&self.ffprobe);
        ffprobe.args(READ_SAFELY).args(["-print_format", "json", "-show_format", "-show_streams"]).arg(local(file));
        let report = self.run("ffprobe", &mut ffprobe).await?;
        match serde_json::from_slice(&report) {
            Ok(report) => media(report).ok_or(ToolError::NoMedia),
            Err(source) => Err(ToolError::Report { program: self.ffprobe.clone(), source }),
        }
    }

    /// Makes a JPEG of the picture at one second, or of the first where it is shorter.
    pub(super) async fn thumbnail(&self, file: &Path, jpeg: &Path) -> Result<(), ToolError> {
        for second in ["1", "0"] {
            let mut ffmpeg = Command::new(&self.ffmpeg);
            ffmpeg
                .arg("-nostdin")
                .args(READ_SAFELY)
                .args(["-ss", second, "-i"])
                .arg(local(file))
                // The first video that is no cover of an audio file.
                .args(["-map", "0:V:0", "-frames:v", "1"])
                .args(["-vf", &format!("scale={THUMBNAIL_WIDTH}:-2"), "-q:v", "3"])
                .args(["-f", "image2", "-update", "1", "-y"])
                .arg(local(jpeg));
            self.run("ffmpeg", &mut ffmpeg).await?;
            // Past the end ffmpeg writes nothing and is content.
            if tokio::fs::metadata(jpeg).await.is_ok_and(|jpeg| jpeg.len() > 0) {
                return Ok(());
            }
        }
        Err(ToolError::Refused { program: self.ffmpeg.clone(), complaints: "no picture could be decoded".into() })
    }

    /// Runs the program that `setting` names to its end and returns what it printed.
    async fn run(&self, setting: &'static str, command: &mut Command) -> Result<Vec<u8>, ToolError> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        // What this process was told in secret is nothing that a file should be able to get at. Errors are read in English.
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        let program = PathBuf::from(command.as_std().get_program());
        let mut running = match command.spawn() {
            Ok(child) => Running::new(child),
            Err(source) => return Err(ToolError::Start { program, setting, source }),
        };
        if let Err(source) = running.limit(Limits::within(self.time_limit)) {
            return Err(ToolError::Unlimited { program, source });
        }
        match tokio::time::timeout(self.time_limit, running.finish()).await {
            Err(_) => Err(ToolError::TimedOut { program, limit: self.time_limit }),
            Ok(Err(source)) => Err(ToolError::Wait { program, source }),
            Ok(Ok(end)) if end.status.success() => Ok(end.output),
            Ok(Ok(end)) => Err(unsuccessful(program, &end)),
        }
    }
}

/// What it means that a program ended like this, and not with success.
fn unsuccessful(program: PathBuf, end: &End) -> ToolError {
    let complaints = complaints(end);
    match end.status.signal() {
        Some(signal) => match limits::exceeded(signal) {
            Some(what) => ToolError::Limited { program, why: what.to_owned() },
            None => ToolError::Killed { program, status: end.status },
        },
        // Nothing else denies memory: a machine that has none kills. A loader that finds no room for libraries has not seen the file.
        None if complaints.contains(NO_MEMORY) && !complaints.contains("shared librar") => {
            ToolError::Limited { program, why: format!("it needed more memory than it may ({complaints})") }
        }
        None => ToolError::Refused { program, complaints },
    }
}

/// How either says that it got no memory.
const NO_MEMORY: &str = "Cannot allocate memory";

/// Options of both programs, before the input. One thread needs no more memory for a long video than for a short one.
const READ_SAFELY: [&str; 12] = [
    "-v",
    "error",
    "-protocol_whitelist",
    "file",
    "-format_whitelist",
    FORMATS,
    "-threads",
    "1",
    "-max_alloc",
    limits::MAX_ALLOC,
    "-max_pixels",
    limits::MAX_PIXELS,
];

/// A path that is not taken for an option or another protocol.
fn local(path: &Path) -> OsString {
    let mut url = OsString::from("file:");
    url.push(path);
    url
}

fn complaints(end: &End) -> String {
    let text = String::from_utf8_lossy(&end.complaints);
    let text = text.trim().replace(|char: char| char.is_control(), " ");
    if text.is_empty() { end.status.to_string() } else { text }
}

/// A program that is under way, in a process group of its own: dropped before it has finished, the whole group dies.
struct Running {
    child: Child,
    group: Option<Pid>,
}

/// How a program ended.
struct End {
    status: ExitStatus,
    output: Vec<u8>,
    complaints: Vec<u8>,
}

impl Running {
    fn new(child: Child) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self { child, group }
    }

    /// Limits what the program, and whatever it starts, may need from now on; what it has needed so far counts.
    fn limit(&self, limits: Limits) -> std::io::Result<()> {
        self.group.map_or(Ok(()), |program| limits.set(program))
    }

    /// Waits until the program and everybody who has its output open are done.
    async fn finish(&mut self) -> std::io::Result<End> {
        let (output, complaints) = (self.child.stdout.take(), self.child.stderr.take());
        let (status, output, complaints) =
            tokio::try_join!(self.child.wait(), capture(output, MAX_OUTPUT), capture(complaints, MAX_COMPLAINTS))?;
        self.group = None;
        Ok(End { status, output, complaints })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // It may be gone already. The runtime reaps the child.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end, so that the writer never blocks, and keeps the beginning.
async fn capture(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> std::io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return Ok(kept) };
    (&mut pipe).take(limit as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    Ok(kept)
}

#[derive(Deserialize)]
struct Report {
    #[serde(default)]
    streams: Vec<Stream>,
    format: Format,
}

#[derive(Deserialize)]
struct Stream {
    #[serde(default)]
    codec_type: String,
    codec_name: Option<String>,
    width: Option<i32>,
    height: Option<i32>,
    #[serde(default)]
    disposition: Disposition,
}

#[derive(Default, Deserialize)]
struct Disposition {
    /// The cover of an audio file is a stream of one picture.
    #[serde(default)]
    attached_pic: u8,
}

#[derive(Deserialize)]
struct Format {
    format_name: String,
    /// Seconds, with a point. A file that was streamed into place may have none.
    duration: Option<String>,
}

/// What ffprobe's report says; `None` if it is neither video nor audio.
fn media(report: Report) -> Option<Media> {
    let is =
        |kind: &'static str| move |stream: &Stream| stream.codec_type == kind && stream.disposition.attached_pic == 0;
    let sound = report.streams.iter().any(is("audio"));
    let picture = report.streams.into_iter().find(is("video"));
    if picture.is_none() && !sound {
        return None;
    }
    // What is too large to be decoded has no size, which is told as 0.
    let known = |size: Option<i32>| size.filter(|size| *size > 0);
    let video = picture.map(|Stream { width, height, codec_name, .. }| Video {
        width: known(width),
        height: known(height),
        codec: codec_name,
    });
    let duration = report.format.duration.and_then(|seconds| seconds.parse().ok());
    Some(Media {
        duration_seconds: duration.filter(|seconds: &f64| seconds.is_finite()),
        extension: extension(&report.format.format_name, video.as_ref()),
        video,
    })
}

/// ffmpeg names a demuxer after everything that it reads.
fn extension(format: &str, video: Option<&Video>) -> &'static str {
    let codec = video.and_then(|video| video.codec.as_deref());
    match (format.split(',').next().unwrap_or_default(), codec) {
        ("mov", Some(_)) => "mp4",
        ("mov", None) => "m4a",
        ("matroska", None | Some("vp8" | "vp9" | "av1")) => "webm",
        ("matroska", _) => "mkv",
        ("mpegts", _) => "ts",
        ("mpeg", _) => "mpg",
        ("ogg", _) => "ogg",
        ("mp3", _) => "mp3",
        ("aac", _) => "aac",
        ("wav", _) => "wav",
        ("flac", _) => "flac",
        ("avi", _) => "avi",
        ("flv", _) => "flv",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests;
