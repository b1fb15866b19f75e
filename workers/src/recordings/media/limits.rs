//! What `ffmpeg` and `ffprobe` may need for one recording: the kernel sees to it, whatever the file makes of the program.
//!
//! Room for ten times what the recorders' 1080p takes, and for 4K; a file of one megabyte can ask for gigabytes and hours.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

/// The largest picture that is decoded: 4096 × 4096.
pub(super) const MAX_PIXELS: &str = "16777216";
/// The largest piece of memory that either program asks for at once, in bytes: a picture of that size has 128 MB at most.
pub(super) const MAX_ALLOC: &str = "268435456";

/// All the memory that a program may write to, in bytes. Pictures refer to up to 16 others: 17 of 4K have 210 MB.
const MEMORY: u64 = 512 << 20;
/// The longest file that a program may write, in bytes: a thumbnail has a tenth of one.
const FILE_SIZE: u64 = 16 << 20;
/// How many files a program may have open.
const OPEN_FILES: u64 = 64;
/// From the signal that tells of too much processor time to the one that nobody survives, in seconds.
const GRACE: u64 = 1;

/// What one run of a program may need.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In seconds.
    processor_time: u64,
}

impl Limits {
    /// Of a run that may take so long: half of it processor time, so that a program that works is told from a machine that is busy.
    pub(super) fn within(time: Duration) -> Self {
        Self { processor_time: (time.as_secs() / 2).max(1) }
    }

    /// Limits a program that runs.
    ///
    /// # Errors
    /// This process may not.
    pub(super) fn set(self, program: Pid) -> io::Result<()> {
        let seconds = self.processor_time;
        let limits = [
            // What a crash would leave behind has the recording in it.
            (Resource::Core, 0, 0),
            (Resource::Cpu, seconds, seconds + GRACE),
            (Resource::Data, MEMORY, MEMORY),
            (Resource::Fsize, FILE_SIZE, FILE_SIZE),
            (Resource::Nofile, OPEN_FILES, OPEN_FILES),
        ];
        limits.into_iter().try_for_each(|(resource, current, maximum)| {
            // It has this process's own, which nobody but root may raise.
            let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let limit = Rlimit { current: Some(current.min(most)), maximum: Some(maximum.min(most)) };
            match prlimit(Some(program), resource, limit) {
                // It was quicker.
                Ok(_) | Err(Errno::SRCH) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }
}

/// What a program has exceeded or run into that this signal ended, if that was the file's doing.
pub(super) fn exceeded(signal: i32) -> Option<&'static str> {
    match Signal::from_named_raw(signal)? {
        Signal::XCPU => Some("it needed more processor time than half of recordings.ffmpeg_timeout"),
        Signal::XFSZ => Some("it wrote a longer file than it may"),
        // How a program takes it that does not reckon with less memory than it wants, too.
        Signal::SEGV | Signal::ABORT | Signal::BUS | Signal::ILL | Signal::FPE => Some("it crashed over the file"),
        _ => None,
    }
}
