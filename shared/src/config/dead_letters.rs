//! `[dead_letters]`: what died, and how long it is kept.

use std::time::Duration;

use serde::Deserialize;

use super::read::{duration, some_duration};
use super::{ConfigError, check_keep};

/// `[dead_letters]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// How long a dead letter is kept that was applied after all, or dropped.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
    /// How long a dead letter is kept that nobody deals with; for ever unless told.
    #[serde(deserialize_with = "some_duration")]
    pub keep_dead: Option<Duration>,
}

impl Default for DeadLetters {
    fn default() -> Self {
        // Longer than a term's holidays.
        Self { keep: Duration::from_hours(24 * 90), keep_dead: None }
    }
}

impl DeadLetters {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        check_keep("dead_letters.keep_dead", self.keep_dead)
    }
}
