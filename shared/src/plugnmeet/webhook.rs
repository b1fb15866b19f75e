//! The bodies of PlugNMeet's webhooks.
//!
//! The ingress reads a [`Routing`] of a body and passes its bytes on; a worker reads the whole of it with [`parse`].
//! Bodies are protojson with proto field names: 64-bit integers are strings, unset fields are absent, enums are names,
//! and fields that nobody here knows come with every release. Legacy bodies (the Django integration's documented shape)
//! say `room.identity` for `room.room_id`, have numbers for times, and carry neither an event id nor an event time.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde::de::{self, Deserializer};

use crate::event::{Change, Connection, Departure, Event, Recording, Room, Sid};

/// The few fields that the ingress routes by.
#[derive(Debug, Deserialize)]
pub struct Routing<'a> {
    /// The event's name.
    #[serde(borrow)]
    pub event: Cow<'a, str>,
    /// Unique per event, the same on a re-sent request; legacy bodies have none.
    #[serde(borrow, default, deserialize_with = "text")]
    pub id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    room: Option<RoutingRoom<'a>>,
}

#[derive(Debug, Deserialize)]
struct RoutingRoom<'a> {
    #[serde(borrow, default, deserialize_with = "text")]
    room_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "text")]
    identity: Option<Cow<'a, str>>,
}

impl<'a> Routing<'a> {
    /// Reads the fields of a body.
    ///
    /// # Errors
    /// The body is not JSON, or has no `event`.
    pub fn read(body: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(body)
    }

    /// The room's own id, where the body names a room.
    pub fn room_id(&self) -> Option<&str> {
        let room = self.room.as_ref()?;
        room.room_id.as_deref().or(room.identity.as_deref())
    }
}

/// The person that a body is about, also where it cannot be understood as a whole; and since when, where it says.
pub fn person(body: &[u8]) -> Option<(String, Option<DateTime<Utc>>)> {
    let body: serde_json::Value = serde_json::from_slice(body).ok()?;
    let person = body.pointer("/participant/identity")?.as_str().filter(|identity| !identity.is_empty())?;
    let time = |pointer| {
        let seconds = body.pointer(pointer)?;
        let seconds = seconds.as_i64().or_else(|| seconds.as_str()?.parse().ok())?;
        time(pointer, seconds).ok().filter(|_| seconds > 0)
    };
    let since =
        ["/participant/joined_at", "/participant/joinedAt", "/created_at", "/createdAt"].into_iter().find_map(time);
    Some((person.to_owned(), since))
}

/// What a body says.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly every body is an event, and it is moved once")]
pub enum Parsed {
    /// Something that a worker has a rule for.
    Event(Event),
    /// Nothing to do, and why: a short stable word for metrics.
    Ignored(&'static str),
}

/// Why a body cannot be understood. It will not get better by waiting.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not JSON, or not of the shape of a webhook.
    #[error("the body is not a PlugNMeet webhook")]
    Shape(#[from] serde_json::Error),
    /// A field that its kind of event must have is not there.
    #[error("{event} has no {field}")]
    Missing {
        /// The event's name.
        event: String,
        /// The field's path.
        field: &'static str,
    },
    /// A time that no calendar has.
    #[error("{field} is {value}, which is no time")]
    Time {
        /// The field's path.
        field: &'static str,
        /// What stands there.
        value: i64,
    },
}

/// Reads a whole body from `source` (the server's name in the settings), taken in at `received_at`.
///
/// # Errors
/// The body lacks what its event must have.
pub fn parse(source: &str, body: &[u8], received_at: DateTime<Utc>) -> Result<Parsed, ParseError> {
    let body: Body = serde_json::from_slice(body)?;
    let at = match body.created_at {
        Some(seconds) if seconds > 0 => time("created_at", seconds)?,
        _ => received_at,
    };
    let change = match body.event.as_str() {
        "room_created" => Change::RoomCreated,
        "room_started" => Change::RoomStarted,
        "room_finished" | "session_ended" => Change::RoomEnded,
        "participant_joined" | "participant_left" => {
            let person = body.participant.as_ref().ok_or_else(|| body.missing("participant"))?;
            if let Some(reason) = person.not_a_person() {
                return Ok(Parsed::Ignored(reason));
            }
            let connection = person.connection(&body)?;
            if body.event == "participant_joined" {
                Change::Joined(connection)
            } else {
                let departure = person.departure(at)?;
                Change::Left(connection, departure)
            }
        }
        "end_recording" | "recording_proceeded" => Change::Recording(body.recording()?),
        _ => return Ok(Parsed::Ignored("unknown event")),
    };
    Ok(Parsed::Event(Event { room: body.room(source)?, at, change }))
}

#[derive(Deserialize)]
struct Body {
    event: String,
    #[serde(default, alias = "createdAt", deserialize_with = "integer")]
    created_at: Option<i64>,
    #[serde(default)]
    room: RoomBody,
    participant: Option<Participant>,
    recording_info: Option<RecordingInfo>,
}

#[derive(Default, Deserialize)]
struct RoomBody {
    sid: Option<String>,
    room_id: Option<String>,
    identity: Option<String>,
    name: Option<String>,
    metadata: Option<String>,
}

/// The part of `room.metadata` that matters here: JSON in a string.
#[derive(Default, Deserialize)]
struct RoomMetadata {
    room_title: Option<String>,
    parent_room_id: Option<String>,
}

#[derive(Deserialize)]
struct Participant {
    sid: Option<String>,
    #[serde(default)]
    identity: String,
    name: Option<String>,
    kind: Option<String>,
    metadata: Option<String>,
    disconnect_reason: Option<String>,
    #[serde(default, deserialize_with = "integer")]
    joined_at: Option<i64>,
    #[serde(default, deserialize_with = "integer")]
    joined_at_ms: Option<i64>,
    /// Legacy bodies only, as the next one.
    #[serde(default, rename = "joinedAt", deserialize_with = "integer")]
    legacy_joined_at: Option<i64>,
    /// How long the connection lasted, in seconds.
    #[serde(default, deserialize_with = "integer")]
    duration: Option<i64>,
}

#[derive(Default, Deserialize)]
struct ParticipantMetadata {
    is_admin: Option<bool>,
}

#[derive(Deserialize)]
struct RecordingInfo {
    #[serde(alias = "recordingId")]
    record_id: Option<String>,
    #[serde(rename = "roomId")]
    legacy_room_id: Option<String>,
}

impl Body {
    fn missing(&self, field: &'static str) -> ParseError {
        ParseError::Missing { event: self.event.clone(), field }
    }

    fn room(&self, source: &str) -> Result<Room, ParseError> {
        let metadata: RoomMetadata = json_in_string(self.room.metadata.as_deref());
        let recording_room = self.recording_info.as_ref().and_then(|info| info.legacy_room_id.as_ref());
        let legacy_room_id = self.room.identity.as_ref().or(recording_room);
        let (room_id, sid) = match (&self.room.room_id, legacy_room_id) {
            (Some(room_id), _) => {
                let sid = self.room.sid.clone().filter(|sid| !sid.is_empty());
                (room_id, Sid::Server(sid.ok_or_else(|| self.missing("room.sid"))?))
            }
            (None, Some(room_id)) => (room_id, Sid::MadeUp(self.room.sid.clone().unwrap_or_default())),
            (None, None) => return Err(self.missing("room.room_id")),
        };
        if room_id.is_empty() {
            return Err(self.missing("room.room_id"));
        }
        Ok(Room {
            source: source.to_owned(),
            room_id: room_id.clone(),
            sid,
            title: clean(metadata.room_title.or_else(|| self.room.name.clone())),
            parent_room_id: clean(metadata.parent_room_id),
        })
    }

    fn recording(&self) -> Result<Recording, ParseError> {
        let record_id = self.recording_info.as_ref().and_then(|info| info.record_id.clone());
        Ok(Recording {
            record_id: record_id.filter(|id| !id.is_empty()).ok_or_else(|| self.missing("recording_info.record_id"))?,
        })
    }
}

impl Participant {
    /// Why this participant gets no attendance; `None` for a person.
    ///
    /// A caller on a phone (kind `SIP`, identity `sip_<number>`) is a person.
    fn not_a_person(&self) -> Option<&'static str> {
        const BOTS: [&str; 2] = ["RECORDER_BOT", "RTMP_BOT"];
        // `ingres_` is how the server spells it.
        const BOT_PREFIXES: [&str; 3] = ["ingres_", "pnm_agent-", "pnm_tts_agent-"];
        let id = self.identity.as_str();
        let kind = self.kind.as_deref().unwrap_or("STANDARD");
        if BOTS.contains(&id)
            || BOT_PREFIXES.iter().any(|prefix| id.starts_with(prefix))
            || !matches!(kind, "STANDARD" | "SIP")
        {
            Some("bot")
        } else if id.ends_with("-native") {
            Some("second connection")
        } else {
            None
        }
    }

    fn connection(&self, body: &Body) -> Result<Connection, ParseError> {
        if self.identity.is_empty() {
            return Err(body.missing("participant.identity"));
        }
        let joined_at = self.joined_at.or(self.legacy_joined_at).filter(|seconds| *seconds > 0);
        let participant_sid = match (self.legacy_joined_at, &self.sid) {
            // A legacy sid is made of the person's id, so it is the same for each connection of theirs.
            (Some(joined_at), _) => format!("legacy-{joined_at}"),
            (None, Some(sid)) if !sid.is_empty() => sid.clone(),
            (None, _) => return Err(body.missing("participant.sid")),
        };
        let metadata: ParticipantMetadata = json_in_string(self.metadata.as_deref());
        Ok(Connection {
            user_id: self.identity.clone(),
            participant_sid,
            name: clean(self.name.clone()),
            is_admin: metadata.is_admin,
            joined_at: joined_at.map(|seconds| time("participant.joined_at", seconds)).transpose()?,
            joined_at_ms: self.joined_at_ms.filter(|ms| *ms > 0),
        })
    }

    /// A legacy leave tells how long the connection lasted instead of when it ended.
    fn departure(&self, at: DateTime<Utc>) -> Result<Departure, ParseError> {
        let at = match (self.legacy_joined_at, self.duration) {
            (Some(joined_at), Some(duration)) => {
                time("participant.duration", joined_at.saturating_add(duration.max(0)))?
            }
            _ => at,
        };
        Ok(Departure { at, reason: clean(self.disconnect_reason.clone()) })
    }
}

fn time(field: &'static str, seconds: i64) -> Result<DateTime<Utc>, ParseError> {
    // PostgreSQL's calendar and the year 9999 of every report end well before chrono's does.
    const YEAR_10000: i64 = 253_402_300_800;
    DateTime::from_timestamp(seconds, 0)
        .filter(|_| seconds < YEAR_10000)
        .ok_or(ParseError::Time { field, value: seconds })
}

/// Metadata is the LMS's and the client's to fill: what is not JSON there is as good as absent.
fn json_in_string<T: Default + de::DeserializeOwned>(text: Option<&str>) -> T {
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// A text; `None` for anything else. The ingress refuses nothing that a worker may understand some day.
fn text<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Cow<'a, str>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Lenient<'a> {
        Text(#[serde(borrow)] Cow<'a, str>),
        Other(de::IgnoredAny),
    }
    Ok(match Lenient::deserialize(deserializer)? {
        Lenient::Text(text) => Some(text),
        Lenient::Other(_) => None,
    })
}

/// A text that only people read, without what PostgreSQL does not take (NUL); `None` if nothing is left.
fn clean(text: Option<String>) -> Option<String> {
    text.map(|text| text.replace('\0', "")).filter(|text| !text.is_empty())
}

/// An integer, or one in a string as protojson writes 64-bit ones; `null` is absent.
fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Integer<'a> {
        Number(i64),
        Float(f64),
        #[serde(borrow)]
        Text(Cow<'a, str>),
    }
    match Option::<Integer<'de>>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Integer::Number(number)) => Ok(Some(number)),
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a fraction of a second is of no interest, and `as` saturates"
        )]
        Some(Integer::Float(number)) => Ok(Some(number as i64)),
        Some(Integer::Text(text)) => text.parse().map(Some).map_err(de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: i64 = 1_800_000_000;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn parse_json(body: &Value) -> Result<Parsed, ParseError> {
        parse("main", body.to_string().as_bytes(), at(NOW))
    }

    fn event(body: &Value) -> Event {
        match parse_json(body).unwrap() {
            Parsed::Event(event) => event,
            Parsed::Ignored(reason) => panic!("ignored: {reason}"),
        }
    }

    fn joined(participant: Value) -> Value {
        json!({"event": "participant_joined", "id": "EV_1", "created_at": "1700000001",
               "room": {"sid": "S1", "room_id": "r", "metadata": "{\"room_title\":\"T\",\"parent_room_id\":\"\"}"},
               "participant": participant})
    }

    #[test]
    fn a_join_and_its_leave_name_the_same_connection() {
        let person = json!({"sid": "PA_1", "identity": "42", "name": "N",
                            "joined_at": "1700000000", "joined_at_ms": "1700000000123"});
        let join = event(&joined(person.clone()));
        let mut body = joined(person);
        body["event"] = "participant_left".into();
        body["participant"]["disconnect_reason"] = "CLIENT_INITIATED".into();
        let leave = event(&body);
        let Change::Joined(connection) = join.change else { panic!() };
        assert_eq!(
            leave.change,
            Change::Left(
                connection.clone(),
                Departure { at: at(1_700_000_001), reason: Some("CLIENT_INITIATED".into()) }
            )
        );
        assert_eq!(connection.joined_at, Some(at(1_700_000_000)));
        assert_eq!(connection.joined_at_ms, Some(1_700_000_000_123));
        assert_eq!(join.room.title.as_deref(), Some("T"));
        assert_eq!(join.room.parent_room_id, None);
        assert_eq!(join.room.sid, Sid::Server("S1".into()));
    }

    #[test]
    fn bots_and_second_connections_are_nobody() {
        for (identity, kind, expected) in [
            ("RECORDER_BOT", None, Some("bot")),
            ("RTMP_BOT", None, Some("bot")),
            ("ingres_1", None, Some("bot")),
            ("pnm_agent-1", None, Some("bot")),
            ("pnm_tts_agent-1", None, Some("bot")),
            ("x", Some("EGRESS"), Some("bot")),
            ("x", Some("INGRESS"), Some("bot")),
            ("x", Some("AGENT"), Some("bot")),
            ("42-native", None, Some("second connection")),
            ("sip_+4912", Some("SIP"), None),
            ("42", Some("STANDARD"), None),
            ("42", None, None),
        ] {
            let mut person = json!({"sid": "PA_1", "identity": identity});
            if let Some(kind) = kind {
                person["kind"] = kind.into();
            }
            match parse_json(&joined(person)).unwrap() {
                Parsed::Ignored(reason) => assert_eq!(Some(reason), expected, "{identity}"),
                Parsed::Event(_) => assert_eq!(None, expected, "{identity}"),
            }
        }
    }

    #[test]
    fn legacy_bodies_are_read_as_they_are() {
        let join = event(&json!({"event": "participant_joined",
            "room": {"sid": "room-1", "identity": "algebra"},
            "participant": {"sid": "participant-user-27", "identity": "27", "name": "N",
                            "metadata": "{\"is_admin\": true}", "joinedAt": 1_697_497_300}}));
        assert_eq!(join.at, at(NOW));
        assert_eq!(join.room.sid, Sid::MadeUp("room-1".into()));
        let Change::Joined(connection) = join.change else { panic!() };
        assert_eq!(connection.participant_sid, "legacy-1697497300");
        assert_eq!(connection.is_admin, Some(true));

        let leave = event(&json!({"event": "participant_left",
            "room": {"identity": "algebra"},
            "participant": {"identity": "27", "joinedAt": 1_697_497_300, "duration": 1800}}));
        let Change::Left(connection, departure) = leave.change else { panic!() };
        assert_eq!(connection.participant_sid, "legacy-1697497300");
        assert_eq!(departure.at, at(1_697_499_100));

        let recording = event(&json!({"event": "end_recording",
            "recording_info": {"recordingId": "rec-1", "roomId": "algebra", "fileName": "../x.mp4"}}));
        assert_eq!(recording.room.room_id, "algebra");
        assert_eq!(recording.change, Change::Recording(Recording { record_id: "rec-1".into() }));
    }

    #[test]
    fn what_cannot_be_understood_says_what_is_wrong() {
        let person = json!({"sid": "PA_1", "identity": "42"});
        let without = |path: &[&str]| {
            let mut body = joined(person.clone());
            let (last, parents) = path.split_last().unwrap();
            let parent = parents.iter().fold(&mut body, |value, key| &mut value[*key]);
            parent.as_object_mut().unwrap().remove(*last);
            parse_json(&body).unwrap_err().to_string()
        };
        assert_eq!(without(&["participant"]), "participant_joined has no participant");
        assert_eq!(without(&["participant", "sid"]), "participant_joined has no participant.sid");
        assert_eq!(without(&["participant", "identity"]), "participant_joined has no participant.identity");
        assert_eq!(without(&["room"]), "participant_joined has no room.room_id");
        assert_eq!(without(&["room", "sid"]), "participant_joined has no room.sid");

        let mut late = joined(person);
        late["created_at"] = "99999999999999".into();
        assert!(matches!(parse_json(&late), Err(ParseError::Time { field: "created_at", .. })));
        late["created_at"] = "soon".into();
        assert!(matches!(parse_json(&late), Err(ParseError::Shape(_))));
        assert!(matches!(parse_json(&json!([])), Err(ParseError::Shape(_))));
    }

    #[test]
    fn of_a_torn_body_it_is_known_whom_it_is_about_and_since_when() {
        let of = |body: Value| person(body.to_string().as_bytes());
        let someone = |since: Option<i64>| Some(("42".to_owned(), since.map(at)));
        assert_eq!(of(json!({"participant": {"identity": "42", "joined_at": "7"}, "created_at": 9})), someone(Some(7)));
        assert_eq!(of(json!({"participant": {"identity": "42", "joinedAt": 8, "joined_at": "0"}})), someone(Some(8)));
        assert_eq!(
            of(json!({"participant": {"identity": "42", "joined_at": "soon"}, "createdAt": "9"})),
            someone(Some(9))
        );
        assert_eq!(of(json!({"participant": {"identity": "42"}})), someone(None));
        assert_eq!(of(json!({"participant": {"identity": ""}})), None);
        assert_eq!(person(b"not json"), None);
    }

    #[test]
    fn routing_needs_an_event_and_nothing_else() {
        let routing = Routing::read(br#"{"event":"x","room":{"identity":"r"},"more":[{}]}"#).unwrap();
        assert_eq!((routing.event.as_ref(), routing.room_id(), routing.id.as_deref()), ("x", Some("r"), None));
        let odd = Routing::read(br#"{"event":"x","id":5,"room":{"room_id":7}}"#).unwrap();
        assert_eq!((odd.id.as_deref(), odd.room_id()), (None, None));
        assert!(Routing::read(br#"{"room":{}}"#).is_err());
        assert!(Routing::read(b"not json").is_err());
    }
}
