//! How fast a server gives a file: not the slow are given up, but those who give next to nothing for ever.
//!
//! Only the time counts in which the server has to give, and not that in which this machine writes.

use std::time::Duration;

use rollcall_shared::config;
use tokio::time::Instant;

/// Over how many times the longest silence a server is measured.
const SILENCES: u32 = 10;

/// What a server has to give in a while.
#[derive(Debug, Clone, Copy)]
pub(super) struct MinRate {
    bytes: u64,
    within: Duration,
}

impl MinRate {
    /// As the settings have it.
    pub(super) fn of(settings: &config::Recordings) -> Self {
        let within = settings.read_timeout * SILENCES;
        Self { bytes: settings.min_rate.saturating_mul(within.as_secs()), within }
    }
}

/// It was not enough.
#[derive(Debug, thiserror::Error)]
#[error("only {came} bytes came in {within:?}; recordings.min_rate says how many have to")]
pub(super) struct TooSlow {
    came: u64,
    within: Duration,
}

/// What one server has given lately.
pub(super) struct Pace {
    at_least: MinRate,
    came: u64,
    waited: Duration,
}

impl Pace {
    pub(super) fn new(at_least: MinRate) -> Self {
        Self { at_least, came: 0, waited: Duration::ZERO }
    }

    /// So many bytes came of what was waited for since then.
    pub(super) fn count(&mut self, came: usize, since: Instant) -> Result<(), TooSlow> {
        self.add(came, since.elapsed())
    }

    fn add(&mut self, came: usize, waited: Duration) -> Result<(), TooSlow> {
        self.came += came as u64;
        self.waited += waited;
        if self.waited < self.at_least.within {
            return Ok(());
        }
        let (came, within) = (std::mem::take(&mut self.came), std::mem::take(&mut self.waited));
        if came < self.at_least.bytes { Err(TooSlow { came, within }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(min_rate: u64) -> Pace {
        let read_timeout = Duration::from_secs(30);
        Pace::new(MinRate::of(&config::Recordings { min_rate, read_timeout, ..config::Recordings::default() }))
    }

    #[test]
    fn a_server_is_measured_over_minutes() {
        let second = Duration::from_secs(1);
        // 1,000 a second, and none for minutes, over and over.
        let mut server = pace(1000);
        for _ in 0..3 {
            server.add(300_000, second).unwrap();
            (0..299).try_for_each(|_| server.add(0, second)).unwrap();
        }
        let mut server = pace(1000);
        (0..299).try_for_each(|_| server.add(999, second)).unwrap();
        let error = server.add(999, second).unwrap_err();
        assert_eq!(error.to_string(), "only 299700 bytes came in 300s; recordings.min_rate says how many have to");
    }

    #[test]
    fn nothing_is_asked_of_a_server_where_the_setting_is_zero() {
        let mut pace = pace(0);
        (0..10).try_for_each(|_| pace.add(0, Duration::from_mins(1))).unwrap();
    }
}
