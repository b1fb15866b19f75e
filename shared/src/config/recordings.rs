//! `[recordings]`: the recordings worker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::read::{duration, list};
use super::{ConfigError, RetrySchedule, SECOND, check, check_time};

/// `[recordings]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recordings {
    /// The delays before a recording that cannot be had yet is asked for again.
    pub retry: RetrySchedule,
    /// How many recordings one process fetches at once.
    pub concurrency: usize,
    /// Where a recording lies while it is fetched; beside its final place where that is a folder.
    pub work_dir: Option<PathBuf>,
    /// How long a delivery waits for its job before it is handed back and the job goes on under its lease.
    #[serde(deserialize_with = "duration")]
    pub hold: Duration,
    /// How long a lease lasts that is not renewed: how soon another worker takes over from one that died.
    #[serde(deserialize_with = "duration")]
    pub lease: Duration,
    /// How long a server may be silent in the middle of an answer.
    #[serde(deserialize_with = "duration")]
    pub read_timeout: Duration,
    /// The `ffmpeg` program.
    pub ffmpeg: PathBuf,
    /// The `ffprobe` program.
    pub ffprobe: PathBuf,
    /// How long either may take for one recording; half of it of processor time.
    #[serde(deserialize_with = "duration")]
    pub ffmpeg_timeout: Duration,
    /// The longest recording that is fetched, in bytes.
    pub max_bytes: u64,
    /// How much stays free of the disks that recordings are fetched to and kept on, in bytes.
    pub min_free_bytes: u64,
    /// What a server has to give, in bytes a second, on an average of ten times `read_timeout`.
    pub min_rate: u64,
    /// Hosts that a download may be redirected to although they are in a private network.
    #[serde(deserialize_with = "list")]
    pub redirect_hosts: Vec<String>,
}

impl Default for Recordings {
    fn default() -> Self {
        Self {
            // Transcoding takes minutes to hours, so the later steps are long: about a day in all.
            retry: RetrySchedule::of_seconds(&[
                30, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800,
            ]),
            concurrency: 4,
            work_dir: None,
            hold: Duration::from_mins(3),
            lease: Duration::from_mins(1),
            read_timeout: Duration::from_secs(30),
            ffmpeg: "ffmpeg".into(),
            ffprobe: "ffprobe".into(),
            ffmpeg_timeout: Duration::from_mins(2),
            // Two days of 720p.
            max_bytes: 50 << 30,
            // What a spool may need by default, and as much again.
            min_free_bytes: 5 << 29,
            // The death of a server that drips, not the slow: 4.9 MB in five minutes.
            min_rate: 16 << 10,
            redirect_hosts: Vec::new(),
        }
    }
}

impl Recordings {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Recordings {
            concurrency,
            work_dir,
            hold,
            lease,
            read_timeout,
            ffmpeg,
            ffprobe,
            ffmpeg_timeout,
            max_bytes,
            ..
        } = self;
        check((1..=100).contains(concurrency), "recordings.concurrency", concurrency, "it is from 1 to 100")?;
        let longest = Duration::from_mins(10);
        check(
            *hold <= longest && (SECOND..=longest).contains(lease),
            "recordings.hold and recordings.lease",
            &format!("{hold:?} and {lease:?}"),
            "either is 10m at most, and the lease 1s at least",
        )?;
        check_time("recordings.read_timeout", *read_timeout, SECOND..=longest, "it is from 1s to 10m")?;
        let hour = Duration::from_hours(1);
        check_time("recordings.ffmpeg_timeout", *ffmpeg_timeout, SECOND..=hour, "it is from 1s to 1h")?;
        check(*max_bytes > 0, "recordings.max_bytes", max_bytes, "it is 1 or more, in bytes")?;
        let (program, folder) = ("it is a program's name, or its path", "it is a folder; what has none is left out");
        check_not_empty("recordings.ffmpeg", ffmpeg, program)?;
        check_not_empty("recordings.ffprobe", ffprobe, program)?;
        work_dir.iter().try_for_each(|path| check_not_empty("recordings.work_dir", path, folder))
    }
}

fn check_not_empty(name: &str, path: &Path, allowed: &'static str) -> Result<(), ConfigError> {
    check(!path.as_os_str().is_empty(), name, &"empty", allowed)
}
