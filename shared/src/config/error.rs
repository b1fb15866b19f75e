//! What is wrong with the settings, said without any secret.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

/// Why the settings cannot be used: says which one, what it is and what is allowed. No secret is ever in it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment cannot be read as settings.
    #[error("{0}")]
    Read(String),
    /// A setting has a value that it cannot have.
    #[error("setting {name} is {value:?}: {allowed}")]
    Invalid {
        /// The setting's name.
        name: String,
        /// Its value, without any password.
        value: String,
        /// What it may be instead.
        allowed: &'static str,
    },
}

/// The `config` crate repeats values, and TOML's errors the line they stand in: either may be a secret.
impl From<config::ConfigError> for ConfigError {
    fn from(error: config::ConfigError) -> Self {
        Self::Read(without_values(&error))
    }
}

/// An error that names the setting, unless `good`.
pub(super) fn check(good: bool, name: &str, value: &dyn Display, allowed: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Invalid { name: name.to_owned(), value: value.to_string(), allowed }) }
}

/// An error that names the setting, unless it is in `range`.
pub(super) fn check_time(
    name: &str,
    value: Duration,
    range: RangeInclusive<Duration>,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    check(range.contains(&value), name, &humantime::format_duration(value), allowed)
}

/// An error that names the setting, unless nobody wants anything to be gone sooner than may be.
pub(super) fn check_keep(name: &str, keep: Option<Duration>) -> Result<(), ConfigError> {
    // Shorter, and what happened on a Friday is gone before anybody sees it on a Monday.
    let range = Duration::from_hours(24)..=Duration::from_hours(24 * 365 * 100);
    keep.map_or(Ok(()), |keep| check_time(name, keep, range, "it is from 1day to 100years"))
}

fn without_values(error: &config::ConfigError) -> String {
    let of_key = |key: &Option<String>| key.as_ref().map(|key| format!("setting {key}: ")).unwrap_or_default();
    match error {
        config::ConfigError::Type { expected, key, .. } => format!("{}expected {expected}", of_key(key)),
        config::ConfigError::At { error, key, .. } => format!("{}{}", of_key(key), without_values(error)),
        config::ConfigError::FileParse { uri, cause } => {
            let file = uri.as_deref().unwrap_or("the settings");
            // The excerpt is what has a line number or nothing before its bar.
            let is_excerpt = |line: &&str| line.split_once('|').is_some_and(|(before, _)| is_blank_or_number(before));
            let cause = cause.to_string();
            let lines: Vec<_> = cause.lines().filter(|line| !is_excerpt(line)).collect();
            format!("{file} is not TOML: {}", lines.join(": "))
        }
        // serde's own words begin like this, and repeat the value.
        other => match other.to_string() {
            text if text.starts_with("invalid type") || text.starts_with("invalid value") => {
                text.split_once(", expected ").map_or("not of this kind".into(), |(_, kind)| format!("expected {kind}"))
            }
            text => text,
        },
    }
}

fn is_blank_or_number(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_digit())
}
