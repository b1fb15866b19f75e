//! What happened in a room, in words that no conference server owns; and the catalogue of which worker wants what.
//!
//! A server's own module ([`crate::plugnmeet::webhook`]) makes [`Event`]s of its bodies; the workers' rules read nothing else.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

/// The workers, each with a queue of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkerName {
    /// Who was there, for how long.
    Attendance,
    /// When rooms opened and ended.
    Rooms,
    /// Recordings, fetched and archived.
    Recordings,
}

impl WorkerName {
    /// Every worker.
    pub const ALL: [Self; 3] = [Self::Attendance, Self::Rooms, Self::Recordings];

    /// The name as it stands on the command line, in the settings and in queue names.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attendance => "attendance",
            Self::Rooms => "rooms",
            Self::Recordings => "recordings",
        }
    }

    /// The events that this worker wants, by the name they have on the wire and in routing keys.
    ///
    /// This is the one catalogue: what no worker wants is ignored at the door.
    pub fn wants(self) -> &'static [&'static str] {
        match self {
            Self::Attendance => &["participant_joined", "participant_left"],
            Self::Rooms => &["room_created", "room_started", "room_finished", "session_ended"],
            Self::Recordings => &["end_recording", "recording_proceeded"],
        }
    }

    /// The worker that wants an event of this name; `None` where nobody does.
    pub fn wanting(event: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|worker| worker.wants().contains(&event))
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that no worker has.
#[derive(Debug, thiserror::Error)]
#[error("there is no worker {0:?}: it is one of attendance, rooms, recordings")]
pub struct UnknownWorker(String);

impl FromStr for WorkerName {
    type Err = UnknownWorker;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|worker| worker.as_str() == name).ok_or_else(|| UnknownWorker(name.to_owned()))
    }
}

/// What can run as a worker: one of events, or the one that looks after what died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnyWorker {
    /// One of events.
    Events(WorkerName),
    /// Dead letters, out of the queue into the database.
    DeadLetters,
}

impl AnyWorker {
    /// Every one.
    pub const ALL: [Self; 4] = [
        Self::Events(WorkerName::Attendance),
        Self::Events(WorkerName::Rooms),
        Self::Events(WorkerName::Recordings),
        Self::DeadLetters,
    ];

    /// The name as it stands on the command line and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Events(worker) => worker.as_str(),
            Self::DeadLetters => "dead-letters",
        }
    }
}

impl fmt::Display for AnyWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that nothing has which can run as a worker.
#[derive(Debug, thiserror::Error)]
#[error("there is no worker {0:?}: it is one of attendance, rooms, recordings, dead-letters")]
pub struct UnknownName(String);

impl FromStr for AnyWorker {
    type Err = UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|worker| worker.as_str() == name).ok_or_else(|| UnknownName(name.to_owned()))
    }
}

/// One thing that happened in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Where it happened.
    pub room: Room,
    /// When it happened by the server's clock; a legacy body does not say, so there it is when it arrived.
    pub at: DateTime<Utc>,
    /// What happened.
    pub change: Change,
}

/// A room in one of its sessions, as an event tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The server's name in the settings.
    pub source: String,
    /// The room's own id, chosen by the LMS.
    pub room_id: String,
    /// Which of the room's sessions.
    pub sid: Sid,
    /// The room's title, where the event tells it.
    pub title: Option<String>,
    /// The class that this breakout room belongs to.
    pub parent_room_id: Option<String>,
}

/// The id of a room's session: a room that is opened again has a new one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sid {
    /// Given by the server, new each time the room is opened.
    Server(String),
    /// Made up by a sender of legacy bodies: it identifies nothing, so the event belongs to the room's open session.
    MadeUp(String),
}

/// What an event changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The room exists; nobody need be in it.
    RoomCreated,
    /// The media server opened the room: once in a session's life, and again each time that server crashed.
    RoomStarted,
    /// The room ended. A session's end is told twice, in either order.
    RoomEnded,
    /// A person's connection began.
    Joined(Connection),
    /// A person's connection ended.
    Left(Connection, Departure),
    /// A recording stopped, or can be had: a rule that asks for the file finds out.
    Recording(Recording),
}

/// One connection of one person: a reconnect is a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The LMS's id of the person, or `sip_<number>` for a caller on a phone.
    pub user_id: String,
    /// The connection's own id.
    pub participant_sid: String,
    /// The name that the person goes by in the room.
    pub name: Option<String>,
    /// Whether the person moderates, where the event tells it.
    pub is_admin: Option<bool>,
    /// When the connection began, to the second.
    pub joined_at: Option<DateTime<Utc>>,
    /// The same in Unix milliseconds where the server tells them: only for ordering.
    pub joined_at_ms: Option<i64>,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure {
    /// When, to the second.
    pub at: DateTime<Utc>,
    /// Why, in the media server's words, such as `CLIENT_INITIATED`.
    pub reason: Option<String>,
}

/// What an event tells of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// The server's id of the recording.
    pub record_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_one_worker_at_most() {
        for worker in WorkerName::ALL {
            assert_eq!(worker.as_str().parse::<WorkerName>().unwrap(), worker);
            for event in worker.wants() {
                assert_eq!(WorkerName::wanting(event), Some(worker));
            }
        }
        assert_eq!(WorkerName::wanting("track_published"), None);
        assert!("attendence".parse::<WorkerName>().unwrap_err().to_string().contains("recordings"));
    }
}
