//! `[dead_letters]`: what died, and how long it is kept.

use std::time::Duration;

use serde::Deserialize;

use super::read::duration;

/// `[dead_letters]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// How long a dead letter is kept that was applied after all, or dropped.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
}

impl Default for DeadLetters {
    fn default() -> Self {
        // Longer than a term's holidays.
        Self { keep: Duration::from_hours(24 * 90) }
    }
}
