//! `[workers]`, what all of them have; and `[attendance]` and `[rooms]`, which have no more than when to try again.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::read::{duration, list, some_address, some_duration};
use super::{ConfigError, RetrySchedule, SECOND, check, check_keep, check_time};

/// `[workers]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// Where a worker shows `/healthz`, `/readyz` and `/metrics`; nowhere unless told.
    #[serde(deserialize_with = "some_address")]
    pub admin_address: Option<SocketAddr>,
    /// As the ingress's.
    #[serde(deserialize_with = "list")]
    pub admin_hosts: Vec<String>,
    /// The most events in one transaction.
    pub batch_size: usize,
    /// How long to wait for a batch to fill once it has begun.
    #[serde(deserialize_with = "duration")]
    pub batch_wait: Duration,
    /// How long what is under way may take to finish when the program is told to stop.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

/// `[attendance]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attendance {
    /// The delays before a failed event is tried again.
    pub retry: RetrySchedule,
    /// How long it is kept who was in a session, after its end; for ever unless told.
    #[serde(deserialize_with = "some_duration")]
    pub keep: Option<Duration>,
}

/// `[rooms]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rooms {
    /// The delays before a failed event is tried again.
    pub retry: RetrySchedule,
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            admin_address: None,
            admin_hosts: Vec::new(),
            batch_size: 200,
            batch_wait: Duration::from_millis(5),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for Attendance {
    fn default() -> Self {
        Self { retry: RetrySchedule::of_seconds(&[1, 5, 30, 120, 600, 1800]), keep: None }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self { retry: RetrySchedule::of_seconds(&[1, 5, 30, 120, 600, 1800]) }
    }
}

impl Workers {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Workers { batch_size, batch_wait, .. } = self;
        check((1..=5_000).contains(batch_size), "workers.batch_size", batch_size, "it is from 1 to 5000")?;
        check_time("workers.batch_wait", *batch_wait, Duration::ZERO..=SECOND, "it is 1s at most")
    }
}

impl Attendance {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_keep("attendance.keep", self.keep)
    }
}
