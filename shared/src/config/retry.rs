//! When what failed is tried again.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Deserializer};

use super::read::list;

/// The delays before a failed event is tried again, shortest first: each has a queue of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    pub(super) fn of_seconds(seconds: &[u64]) -> Self {
        Self(seconds.iter().copied().map(Duration::from_secs).collect())
    }

    /// Every delay, shortest first, each once.
    pub fn delays(&self) -> &[Duration] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for RetrySchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut delays = list(deserializer)?
            .iter()
            .map(|text| retry_delay(text).map_err(de::Error::custom))
            .collect::<Result<Vec<_>, _>>()?;
        delays.sort_unstable();
        delays.dedup();
        if delays.is_empty() {
            return Err(de::Error::custom("a retry schedule is one or more delays, such as \"1s, 5m\""));
        }
        Ok(Self(delays))
    }
}

/// RabbitMQ counts a time to live in milliseconds, up to 32 bits of them.
fn retry_delay(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = (Duration::from_millis(1), Duration::from_hours(24 * 31));
    match humantime::parse_duration(text) {
        Ok(delay) if (shortest..=longest).contains(&delay) => Ok(delay),
        Ok(_) => Err(format!("{text:?} is no delay of a retry schedule: it is from 1ms to 31days")),
        Err(error) => Err(format!("{text:?} is no delay such as \"500ms\", \"10s\" or \"5m\": {error}")),
    }
}
