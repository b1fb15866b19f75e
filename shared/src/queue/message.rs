//! What travels: a webhook's body, untouched, and what we say about it.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The longest error that travels with a message, in bytes: headers must fit a frame.
const MAX_ERROR: usize = 4_000;

/// One webhook on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Ours, one per webhook taken in: a server may send an event again, and a legacy event has no id.
    pub id: Uuid,
    /// The server's id of the event.
    pub event_id: Option<String>,
    /// The event's name.
    pub event: String,
    /// The server's name in the settings.
    pub source: String,
    /// The room's own id, where the body names one.
    pub room_id: Option<String>,
    /// When the ingress took it in.
    pub received_at: DateTime<Utc>,
    /// The W3C trace context of the request.
    pub traceparent: Option<String>,
    /// How often a worker has failed at it.
    pub attempt: u32,
    /// When a worker first failed at it.
    pub first_failed_at: Option<DateTime<Utc>>,
    /// Why a worker last failed at it.
    pub last_error: Option<String>,
    /// The webhook's body, as it came.
    pub body: Bytes,
}

/// Why a message is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadKind {
    /// Trying again would not have helped.
    Permanent,
    /// It was tried as often as the worker's schedule says.
    Exhausted,
    /// It took a process along, again and again.
    Poison,
}

impl DeadKind {
    /// A short stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Permanent => "permanent",
            Self::Exhausted => "exhausted",
            Self::Poison => "poison",
        }
    }
}

impl Message {
    /// A message that was taken in now.
    pub fn new(source: &str, event: &str, body: Bytes) -> Self {
        Self {
            id: Uuid::now_v7(),
            event_id: None,
            event: event.to_owned(),
            source: source.to_owned(),
            room_id: None,
            received_at: Utc::now(),
            traceparent: None,
            attempt: 0,
            first_failed_at: None,
            last_error: None,
            body,
        }
    }

    /// The same message after one more failed attempt.
    pub(super) fn failed(&self, error: &str) -> Self {
        Self {
            attempt: self.attempt + 1,
            first_failed_at: self.first_failed_at.or_else(|| Some(Utc::now())),
            last_error: Some(cut(error).to_owned()),
            ..self.clone()
        }
    }
}

fn cut(error: &str) -> &str {
    &error[..error.floor_char_boundary(MAX_ERROR)]
}
