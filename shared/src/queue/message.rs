//! What travels: a webhook's body, untouched, and what we say about it.
//!
//! What is said beside a body has a limit ([`MAX_ID`], [`MAX_NAME`]), so that it fits any broker's frame whoever has said it: a
//! webhook, a row that somebody has brought in, another program that publishes to our queues. What is longer counts as not
//! said: the body has it anyway.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::event::WorkerName;

/// The longest error that travels with a message, in bytes.
pub(super) const MAX_ERROR: usize = 4_000;
/// The longest id that travels beside a body, in bytes.
pub const MAX_ID: usize = 1_000;
/// The longest name of an event or of a server, in bytes: together they are a routing key, and AMQP's have 255.
pub const MAX_NAME: usize = 120;
/// The longest body that any queue takes, in bytes: RabbitMQ 4's limit of a message, unless somebody has changed it.
pub const MAX_BODY: usize = 16 << 20;

/// What a message says about itself is called like this, on a broker as headers.
pub(super) mod header {
    pub(in crate::queue) const EVENT_ID: &str = "rollcall-event-id";
    pub(in crate::queue) const SOURCE: &str = "rollcall-source";
    pub(in crate::queue) const ROOM_ID: &str = "rollcall-room-id";
    pub(in crate::queue) const RECEIVED_AT: &str = "rollcall-received-at";
    pub(in crate::queue) const TRACEPARENT: &str = "traceparent";
    pub(in crate::queue) const ATTEMPT: &str = "rollcall-attempt";
    pub(in crate::queue) const FIRST_FAILED_AT: &str = "rollcall-first-failed-at";
    pub(in crate::queue) const LAST_FAILED_AT: &str = "rollcall-last-failed-at";
    pub(in crate::queue) const LAST_ERROR: &str = "rollcall-last-error";
    pub(in crate::queue) const DEAD_KIND: &str = "rollcall-dead-kind";
    pub(in crate::queue) const DEAD_CAUSE: &str = "rollcall-dead-cause";
    pub(in crate::queue) const HOST: &str = "rollcall-host";
    pub(in crate::queue) const DEAD_LETTER_ID: &str = "rollcall-dead-letter-id";
    pub(in crate::queue) const REPLAY: &str = "rollcall-replay";
}

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
    /// Of what had died and was sent back to its worker.
    pub replay: Option<Replay>,
    /// The webhook's body, as it came.
    pub body: Bytes,
}

/// Which try of which dead letter a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replay {
    /// The row in `dead_letter`.
    pub dead_letter_id: i64,
    /// The first replay is 1.
    pub number: i32,
}

/// A replay, by what its dead letter has in any database: where that was exported, or restored from a backup, its row has
/// another id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Replayed {
    /// The message's id.
    pub message_id: Uuid,
    /// The first replay is 1.
    pub number: i32,
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

/// Why a message dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Death {
    /// What it would have needed to live.
    pub kind: DeadKind,
    /// A short stable word for what similar failures share.
    pub cause: String,
    /// Where.
    pub host: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// What a dead message is said to have died of that killed whoever had it.
pub(super) const POISON: &str = "poison";

/// A message that was taken out of the queue by somebody else than the worker that it was for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// Whose it was.
    pub worker: WorkerName,
    /// What it was.
    pub message: Message,
    /// Why it is dead, if it is.
    pub death: Option<Death>,
    /// The headers that it had, by their names on a broker.
    pub headers: Map<String, Value>,
}

impl DeadKind {
    /// The kind of this name.
    pub(super) fn parse(word: &str) -> Option<Self> {
        [Self::Permanent, Self::Exhausted, Self::Poison].into_iter().find(|kind| kind.as_str() == word)
    }

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
    /// Which replay it is, if it is one.
    pub fn replayed(&self) -> Option<Replayed> {
        self.replay.map(|Replay { number, .. }| Replayed { message_id: self.id, number })
    }

    /// The same without what is too long to travel beside the body.
    pub(super) fn bounded(self) -> Self {
        let within = |most: usize| move |text: &String| text.len() <= most;
        Self {
            event: Some(self.event).filter(within(MAX_NAME)).unwrap_or_default(),
            source: Some(self.source).filter(within(MAX_NAME)).unwrap_or_default(),
            event_id: self.event_id.filter(within(MAX_ID)),
            room_id: self.room_id.filter(within(MAX_ID)),
            traceparent: self.traceparent.filter(within(MAX_NAME)),
            last_error: self.last_error.map(|error| cut(&error, MAX_ERROR).to_owned()),
            ..self
        }
    }

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
            replay: None,
            body,
        }
    }

    /// What the message says about itself, and if it is dead, why.
    pub(super) fn headers(&self, death: Option<&Death>) -> Map<String, Value> {
        let milliseconds = |at: DateTime<Utc>| Value::from(at.timestamp_millis());
        let headers = [
            (header::SOURCE, Some(self.source.as_str().into())),
            (header::EVENT_ID, self.event_id.as_deref().map(Value::from)),
            (header::ROOM_ID, self.room_id.as_deref().map(Value::from)),
            (header::RECEIVED_AT, Some(milliseconds(self.received_at))),
            (header::TRACEPARENT, self.traceparent.as_deref().map(Value::from)),
            (header::ATTEMPT, (self.attempt > 0).then(|| self.attempt.into())),
            (header::FIRST_FAILED_AT, self.first_failed_at.map(milliseconds)),
            (header::LAST_ERROR, self.last_error.as_deref().map(Value::from)),
            (header::DEAD_LETTER_ID, self.replay.map(|replay| replay.dead_letter_id.into())),
            (header::REPLAY, self.replay.map(|replay| replay.number.into())),
            (header::DEAD_KIND, death.map(|death| death.kind.as_str().into())),
            (header::DEAD_CAUSE, death.map(|death| death.cause.as_str().into())),
            (header::HOST, death.map(|death| death.host.as_str().into())),
            (header::LAST_FAILED_AT, death.map(|death| milliseconds(death.at))),
        ];
        headers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    /// The same message after one more failed attempt.
    pub(super) fn failed(&self, error: &str) -> Self {
        Self {
            attempt: self.attempt.saturating_add(1),
            first_failed_at: self.first_failed_at.or_else(|| Some(Utc::now())),
            last_error: Some(cut(error, MAX_ERROR).to_owned()),
            ..self.clone()
        }
    }
}

/// No more than so many bytes of a text.
pub(super) fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}
