//! What dead letters are grouped by: a short stable word for what similar failures share, whatever room, person or recording each is
//! about. `docs/operating.md` says what to do about each.
//!
//! It is read off the error itself, the first in its chain that is known here; the words of an error may change, these do not.

use std::error::Error as StdError;
use std::io;

use anyhow::Error;
use reqwest::StatusCode;
use rollcall_shared::plugnmeet::api::{self, Asked};
use rollcall_shared::plugnmeet::webhook::ParseError;
use rollcall_shared::store::{self, ErrorKind};
use sea_orm::DbErr;

/// What nothing here has a word for.
pub(crate) const OTHER: &str = "other";

/// The word for an error.
pub(crate) fn of(error: &Error) -> &str {
    error.chain().find_map(known).unwrap_or(OTHER)
}

/// An error whose cause is known to whoever saw it, and cannot be read off it here.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(crate) struct Told {
    cause: String,
    #[source]
    error: Box<dyn StdError + Send + Sync>,
}

impl Told {
    /// `error`, or a text that says what went wrong.
    pub(crate) fn new(cause: impl Into<String>, error: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { cause: cause.into(), error: error.into() }
    }
}

fn known<'e>(error: &'e (dyn StdError + 'static)) -> Option<&'e str> {
    if let Some(told) = error.downcast_ref::<Told>() {
        return Some(&told.cause);
    }
    let of_server = || error.downcast_ref().map(of_server);
    let of_database = || error.downcast_ref().map(of_database);
    let of_body = || error.downcast_ref().map(of_body);
    let of_storage = || error.is::<object_store::Error>().then_some("storage");
    let of_disk = || error.is::<io::Error>().then_some("disk");
    of_server().or_else(of_database).or_else(of_body).or_else(of_storage).or_else(of_disk)
}

fn of_server(error: &api::Error) -> &'static str {
    match error {
        api::Error::Setup(_) => "plugnmeet-client",
        api::Error::Connection(_) => "plugnmeet-away",
        api::Error::Redirect(_) => "redirect-refused",
        api::Error::Unreadable(_) | api::Error::Endless => "plugnmeet-answer",
        api::Error::Status { asked, status, .. } => match (asked, *status) {
            (_, StatusCode::TOO_MANY_REQUESTS) => "plugnmeet-busy",
            (_, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) => "plugnmeet-away",
            (_, status) if status.is_server_error() => "plugnmeet-away",
            (Asked::Api, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => "plugnmeet-key",
            (Asked::Download, StatusCode::NOT_FOUND) => "recording-gone",
            _ => "plugnmeet-refused",
        },
        // Older servers have no code, and one thing to refuse.
        api::Error::Refused { code, .. } => match code.as_str() {
            "NOT_FOUND" | "" => "recording-not-found",
            _ => "plugnmeet-refused",
        },
    }
}

fn of_database(error: &DbErr) -> &'static str {
    match store::kind_of(error) {
        ErrorKind::Refused => "database-refused",
        ErrorKind::Unreachable => "database-away",
        ErrorKind::Conflict | ErrorKind::Unknown => "database",
    }
}

fn of_body(error: &ParseError) -> &'static str {
    match error {
        ParseError::Shape(_) => "body-unreadable",
        ParseError::Missing { .. } => "body-incomplete",
        ParseError::Time { .. } => "body-time",
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};
    use sea_orm::RuntimeErr;

    use super::*;

    fn status(asked: Asked, status: u16) -> Error {
        let status = StatusCode::from_u16(status).unwrap();
        Error::new(api::Error::Status { asked, status, code: String::new(), message: String::new(), retry_after: None })
    }

    #[test]
    fn what_is_said_around_an_error_changes_nothing() {
        let error = status(Asked::Api, 502).context("asking about it").context("recording r-1 of main");
        assert_eq!(of(&error), "plugnmeet-away");
        let kept = Error::new(Told::new(of(&error), error.to_string())).context("recording r-1 of main");
        assert_eq!(of(&kept), "plugnmeet-away");
    }

    #[test]
    fn similar_failures_share_a_word() {
        for (error, cause) in [
            (status(Asked::Download, 404), "recording-gone"),
            (status(Asked::Api, 404), "plugnmeet-refused"),
            (status(Asked::Api, 401), "plugnmeet-key"),
            (status(Asked::Download, 503), "plugnmeet-away"),
            (status(Asked::Api, 429), "plugnmeet-busy"),
            (Error::new(DbErr::Query(RuntimeErr::Internal("no such table".into()))), "database"),
            (Error::new(io::Error::other("no room")).context("storing it"), "disk"),
            (Error::new(Told::new("ffmpeg", io::Error::other("no such program"))), "ffmpeg"),
            (anyhow!("whatever"), "other"),
        ] {
            assert_eq!(of(&error), cause, "{error:?}");
        }
        let body = Err::<(), _>(ParseError::Missing { event: "x".into(), field: "y" }).context("reading");
        assert_eq!(of(&body.unwrap_err()), "body-incomplete");
    }
}
