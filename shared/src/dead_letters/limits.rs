//! What a dead letter may hold, wherever it comes from: a queue, a file of another installation, an edit, or somebody's SQL.
//!
//! What an operator brings in is looked at as closely as what the network brings. A database or a queue would refuse some of it
//! (a number that no column takes, a name that no routing key has), and take along what is behind it.

use std::fmt::Display;

use chrono::{DateTime, Utc};

use super::subject::without_nul;
use crate::config;
use crate::queue::MAX_NAME;

/// The longest name of any kind, and the longest text, in bytes. What an index holds must fit a third of PostgreSQL's page.
pub(super) const NAME: usize = 200;
pub(super) const WORDS: usize = 10_000;

/// How often anything can be sent back.
pub(super) const MAX_REPLAYS: i32 = 1_000_000;
/// What the number of replays is, for people.
pub(super) const REPLAYS: &str = "a number from 0, and there have not been a million";

/// The end of the year 9999, in Unix seconds: what any database and every report takes.
const LAST_SECOND: i64 = 253_402_300_799;

/// A value that cannot be.
#[derive(Debug, thiserror::Error)]
#[error("its {field} is {shown}: it has to be {allowed}")]
pub struct BadValue {
    field: &'static str,
    /// No more of it than people want to read.
    shown: String,
    allowed: String,
}

/// That the field has this value, and what it is to be.
pub(super) fn value(field: &'static str, value: impl Display, allowed: impl Into<String>) -> BadValue {
    const SHOWN: usize = 60;
    let value = value.to_string();
    let shown = match value.len() {
        length if length > SHOWN => format!("{:?}… ({length} bytes)", &value[..value.floor_char_boundary(SHOWN)]),
        _ => format!("{value:?}"),
    };
    BadValue { field, shown, allowed: allowed.into() }
}

/// A text of so many bytes at most.
pub(super) fn check_text(field: &'static str, text: &str, most: usize) -> Result<(), BadValue> {
    if text.len() <= most { Ok(()) } else { Err(value(field, text, format!("{most} bytes at most"))) }
}

/// A name that travels as one.
pub(super) fn check_name(field: &'static str, name: &str) -> Result<(), BadValue> {
    check_text(field, name, MAX_NAME)
}

/// A server's name in the settings; there is none where somebody has published a message that says none.
pub(super) fn check_source(source: &str) -> Result<(), BadValue> {
    let is_one = source.is_empty() || config::is_name(source);
    if is_one { Ok(()) } else { Err(value("source", source, format!("the name of a server: {}", config::NAME))) }
}

/// A body of so many bytes at most.
pub(super) fn check_body(field: &'static str, length: usize, most: usize) -> Result<(), BadValue> {
    if length <= most {
        Ok(())
    } else {
        Err(value(field, format!("{length} bytes long"), format!("{most} bytes at most")))
    }
}

/// A time that any database takes.
pub(super) fn check_time(field: &'static str, at: DateTime<Utc>) -> Result<(), BadValue> {
    let is_one = (0..=LAST_SECOND).contains(&at.timestamp());
    if is_one { Ok(()) } else { Err(value(field, at, "a time from 1970 to 9999")) }
}

/// A text as any database takes it: no longer than that, and PostgreSQL's have no NUL.
pub(super) fn text(text: &str, longest: usize) -> String {
    without_nul(&text[..text.floor_char_boundary(longest)])
}

/// A time as any database takes it.
pub(super) fn time(at: DateTime<Utc>) -> DateTime<Utc> {
    at.clamp(DateTime::UNIX_EPOCH, DateTime::from_timestamp(LAST_SECOND, 0).unwrap_or(DateTime::UNIX_EPOCH))
}
