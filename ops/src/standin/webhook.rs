//! The bodies of webhooks, as a plugNmeet-server 2.4 writes them: about 4 KB each, since the room's metadata is about
//! 3 KB.
//!
//! Events of the room itself come from PlugNMeet, those of its people from the media server that it wraps: they tell
//! different parts of the room. The field order is the server's; the tests compare with what a running one sent.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

/// What `room.metadata` says beside the title and its like: the features, as a running server had them.
const ROOM_METADATA: &str = include_str!("room_metadata.json");
/// How long an empty room stays open, in seconds.
const EMPTY_TIMEOUT: u32 = 1800;
const CODECS: [&str; 10] = [
    "audio/PCMU",
    "audio/PCMA",
    "audio/opus",
    "audio/red",
    "video/VP8",
    "video/H264",
    "video/VP9",
    "video/AV1",
    "video/H265",
    "video/rtx",
];
/// The identity of the bot that records.
pub const RECORDER_BOT: &str = "RECORDER_BOT";
/// The name of the machine that records.
const RECORDER: &str = "node_01";

/// A room in one of its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    /// The room's own id, chosen by the LMS.
    pub room_id: String,
    /// The session.
    pub sid: String,
    /// The room's title.
    pub title: String,
    /// The class that this breakout room belongs to.
    pub parent_room_id: Option<String>,
    /// When PlugNMeet made the room.
    pub created_at: DateTime<Utc>,
}

/// One connection of one person, or of a bot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The connection's own id, `PA_…`.
    pub sid: String,
    /// The LMS's id of the person.
    pub identity: String,
    /// The name that the person goes by; not told where it is empty.
    pub name: String,
    /// When it began; a real server always tells, to the millisecond.
    pub joined_at: Option<DateTime<Utc>>,
}

/// What a webhook tells of.
#[derive(Debug, Clone, Copy)]
pub enum Happening<'a> {
    /// PlugNMeet made the room.
    RoomCreated,
    /// The media server opened it.
    RoomStarted,
    /// The media server closed it.
    RoomFinished,
    /// PlugNMeet ended its session.
    SessionEnded,
    /// A connection began.
    Joined(&'a Connection),
    /// A connection ended, and why: `CLIENT_INITIATED`, `CONNECTION_TIMEOUT`, …
    Left(&'a Connection, &'a str),
    /// Somebody's microphone is on.
    TrackPublished(&'a Connection),
    /// The recorder started on the recording of this id.
    StartRecording(&'a str),
    /// The recorder stopped; the file is still being made.
    EndRecording(&'a str),
    /// The file of this many bytes can be had.
    RecordingProceeded(&'a str, u64),
    /// The session's analytics of this id can be had.
    ArtifactCreated(&'a str),
}

impl Happening<'_> {
    /// The event's name on the wire.
    pub fn event(&self) -> &'static str {
        match self {
            Self::RoomCreated => "room_created",
            Self::RoomStarted => "room_started",
            Self::RoomFinished => "room_finished",
            Self::SessionEnded => "session_ended",
            Self::Joined(_) => "participant_joined",
            Self::Left(..) => "participant_left",
            Self::TrackPublished(_) => "track_published",
            Self::StartRecording(_) => "start_recording",
            Self::EndRecording(_) => "end_recording",
            Self::RecordingProceeded(..) => "recording_proceeded",
            Self::ArtifactCreated(_) => "artifact_created",
        }
    }

    /// Events of the media server have ids of its own kind.
    fn new_id(&self) -> String {
        match self {
            Self::RoomStarted | Self::RoomFinished | Self::Joined(_) | Self::Left(..) | Self::TrackPublished(_) => {
                format!("EV_{}", short_id())
            }
            _ => Uuid::new_v4().to_string(),
        }
    }
}

/// Twelve characters, as LiveKit's ids have them.
pub fn short_id() -> String {
    let mut id = Uuid::new_v4().simple().to_string();
    id.truncate(12);
    id
}

/// One event, as it goes on the wire. Sent again, it is the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The event's name.
    pub event: &'static str,
    /// The event's id.
    pub id: String,
    /// The body.
    pub body: Bytes,
}

impl Room {
    /// The webhook that tells of `happening` at `at`, with an event id of its own.
    pub fn webhook(&self, happening: Happening<'_>, at: DateTime<Utc>) -> Webhook {
        let id = happening.new_id();
        let body = Body {
            event: happening.event(),
            room: self.body(happening),
            participant: ParticipantBody::of(happening),
            track: TrackBody::of(happening),
            recording_info: RecordingBody::of(happening, &self.sid),
            room_artifact: ArtifactBody::of(happening, self),
            id: &id,
            created_at: at.timestamp().to_string(),
        };
        let body = serde_json::to_vec(&body).expect("strings and integers always serialise");
        Webhook { event: happening.event(), id, body: body.into() }
    }

    fn body(&self, happening: Happening<'_>) -> RoomBody<'_> {
        let from_media_server = matches!(
            happening,
            Happening::RoomStarted | Happening::RoomFinished | Happening::Joined(_) | Happening::Left(..)
        );
        let track = matches!(happening, Happening::TrackPublished(_));
        let ended = matches!(happening, Happening::SessionEnded);
        let made = matches!(happening, Happening::RoomCreated);
        RoomBody {
            sid: &self.sid,
            room_id: &self.room_id,
            empty_timeout: (made || from_media_server || track).then_some(EMPTY_TIMEOUT),
            max_participants: (from_media_server || track).then_some(0),
            creation_time: match (made || ended || from_media_server, track) {
                (true, _) => Some(self.created_at.timestamp().to_string()),
                (false, true) => Some("0".to_owned()),
                (false, false) => None,
            },
            enabled_codecs: from_media_server.then(|| CODECS.map(|mime| Codec { mime })),
            metadata: (made || ended || from_media_server || track).then(|| self.metadata()),
            num_participants: (from_media_server || track).then_some(0),
        }
    }

    fn metadata(&self) -> String {
        let string = |text: &str| Value::from(text).to_string();
        format!(
            concat!(
                r#"{{"room_title":{},"is_recording":false,"is_active_rtmp":false,"parent_room_id":{},"#,
                r#""is_breakout_room":{},"started_at":"{}",{}"#
            ),
            string(&self.title),
            string(self.parent_room_id.as_deref().unwrap_or_default()),
            self.parent_room_id.is_some(),
            self.created_at.timestamp(),
            ROOM_METADATA.trim().trim_start_matches('{'),
        )
    }
}

#[derive(Serialize)]
struct Body<'a> {
    event: &'static str,
    room: RoomBody<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    participant: Option<ParticipantBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    track: Option<TrackBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recording_info: Option<RecordingBody<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    room_artifact: Option<ArtifactBody<'a>>,
    id: &'a str,
    created_at: String,
}

#[derive(Serialize)]
struct RoomBody<'a> {
    sid: &'a str,
    room_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    empty_timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_participants: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_time: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    enabled_codecs: Option<[Codec; CODECS.len()]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_participants: Option<u32>,
}

#[derive(Serialize)]
struct Codec {
    mime: &'static str,
}

#[derive(Serialize)]
struct ParticipantBody<'a> {
    sid: &'a str,
    identity: &'a str,
    #[serde(flatten)]
    more: Option<ParticipantDetails<'a>>,
}

/// What a `track_*` does not tell.
#[derive(Serialize)]
struct ParticipantDetails<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_at_ms: Option<String>,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    version: u32,
    permission: Permission,
    #[serde(skip_serializing_if = "Option::is_none")]
    disconnect_reason: Option<&'a str>,
    client_protocol: u32,
    capabilities: [&'static str; 2],
}

#[derive(Serialize)]
struct Permission {
    can_subscribe: bool,
    can_publish: bool,
    can_publish_data: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    hidden: bool,
}

impl<'a> ParticipantBody<'a> {
    fn of(happening: Happening<'a>) -> Option<Self> {
        let (connection, more) = match happening {
            Happening::Joined(connection) => (connection, Some(ParticipantDetails::of(connection, "ACTIVE", None))),
            Happening::Left(connection, reason) => {
                (connection, Some(ParticipantDetails::of(connection, "DISCONNECTED", Some(reason))))
            }
            Happening::TrackPublished(connection) => (connection, None),
            _ => return None,
        };
        Some(Self { sid: &connection.sid, identity: &connection.identity, more })
    }
}

impl<'a> ParticipantDetails<'a> {
    fn of(connection: &'a Connection, state: &'static str, disconnect_reason: Option<&'a str>) -> Self {
        Self {
            state,
            joined_at: connection.joined_at.map(|at| at.timestamp().to_string()),
            joined_at_ms: connection.joined_at.map(|at| at.timestamp_millis().to_string()),
            name: &connection.name,
            version: if disconnect_reason.is_some() { 3 } else { 2 },
            permission: Permission {
                can_subscribe: true,
                can_publish: true,
                can_publish_data: true,
                hidden: connection.identity == RECORDER_BOT,
            },
            disconnect_reason,
            client_protocol: 2,
            capabilities: ["CAP_PACKET_TRAILER", "CAP_COMPRESSION_DEFLATE_RAW"],
        }
    }
}

#[derive(Serialize)]
struct TrackBody {
    sid: String,
    name: &'static str,
    source: &'static str,
    mime_type: &'static str,
    mid: &'static str,
    stream: &'static str,
}

impl TrackBody {
    fn of(happening: Happening<'_>) -> Option<Self> {
        matches!(happening, Happening::TrackPublished(_)).then(|| Self {
            sid: format!("TR_AM{}", short_id()),
            name: "mic",
            source: "MICROPHONE",
            mime_type: "audio/red",
            mid: "7",
            stream: "camera",
        })
    }
}

#[derive(Serialize)]
struct RecordingBody<'a> {
    record_id: &'a str,
    recorder_id: &'static str,
    recorder_msg: &'static str,
    file_path: String,
    /// In MB.
    file_size: Value,
}

impl<'a> RecordingBody<'a> {
    fn of(happening: Happening<'a>, room_sid: &str) -> Option<Self> {
        let (record_id, file_path, file_size) = match happening {
            Happening::StartRecording(record_id) | Happening::EndRecording(record_id) => {
                (record_id, String::new(), Value::from(0))
            }
            Happening::RecordingProceeded(record_id, bytes) => {
                (record_id, file_path(room_sid, record_id), megabytes(bytes, 1e6))
            }
            _ => return None,
        };
        Some(Self { record_id, recorder_id: RECORDER, recorder_msg: "success", file_path, file_size })
    }
}

/// Where a recorder puts a file, on a machine of its own.
pub(super) fn file_path(room_sid: &str, record_id: &str) -> String {
    format!("{RECORDER}/{room_sid}/{record_id}.mp4")
}

/// Bytes as a server tells them: megabytes, with `1 / precision` as the smallest part.
pub(super) fn megabytes(bytes: u64, precision: f64) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a file of 2^53 bytes is not to be expected")]
    let megabytes = (bytes as f64 / 1e6 * precision).round() / precision;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and small where it is used")]
    if megabytes.fract() == 0.0 { Value::from(megabytes as u64) } else { Value::from(megabytes) }
}

#[derive(Serialize)]
struct ArtifactBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    artifact_id: &'a str,
    metadata: ArtifactMetadata,
}

#[derive(Serialize)]
struct ArtifactMetadata {
    file_info: FileInfo,
}

#[derive(Serialize)]
struct FileInfo {
    file_path: String,
    file_size: &'static str,
    mime_type: &'static str,
}

impl<'a> ArtifactBody<'a> {
    fn of(happening: Happening<'a>, room: &Room) -> Option<Self> {
        let Happening::ArtifactCreated(artifact_id) = happening else { return None };
        Some(Self {
            kind: "MEETING_ANALYTICS",
            artifact_id,
            metadata: ArtifactMetadata {
                file_info: FileInfo {
                    file_path: format!("meeting_analytics/{}/analytics-{}.json", room.room_id, room.sid),
                    file_size: "380",
                    mime_type: "application/json",
                },
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD_ID: &str = "bf939269-8471-4dc9-8f20-e27fc5887474-1795308813921";

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    fn room(created_at: i64) -> Room {
        Room {
            room_id: "phys-9".into(),
            sid: "bf939269-8471-4dc9-8f20-e27fc5887474".into(),
            title: "Physics فیزیک".into(),
            parent_room_id: None,
            created_at: at(created_at),
        }
    }

    fn connection(sid: &str, identity: &str, name: &str, joined_at_ms: i64) -> Connection {
        Connection {
            sid: sid.into(),
            identity: identity.into(),
            name: name.into(),
            joined_at: DateTime::from_timestamp_millis(joined_at_ms),
        }
    }

    /// A body without what is new in each: ids of the event and the room's metadata, and what changes as a class goes
    /// on.
    fn comparable(body: &[u8]) -> (Value, Value) {
        let mut body: Value = serde_json::from_slice(body).unwrap();
        let mut metadata = Value::Null;
        if let Some(text) = body["room"].as_object_mut().unwrap().remove("metadata") {
            metadata = serde_json::from_str(text.as_str().unwrap()).unwrap();
            for key in ["metadata_id", "extra_data", "started_at", "is_recording"] {
                metadata.as_object_mut().unwrap().remove(key);
            }
        }
        body.as_object_mut().unwrap().remove("id");
        (body, metadata)
    }

    #[test]
    fn bodies_are_those_of_a_running_server() {
        let teacher = connection("PA_uYenQyGutwk7", "42", "Teacher معلم", 1_795_308_811_213);
        let bot = connection("PA_pMYvNwyrZZ6w", RECORDER_BOT, "bot", 1_795_308_813_386);
        let student = connection("PA_fnGkAyXDwVNr", "1007", "Student One", 1_795_308_812_304);
        // PlugNMeet made the room, the media server made its own a second later.
        let (plugnmeet, livekit) = (1_795_308_810, 1_795_308_811);
        for (captured, created_at, happening, seconds) in [
            (include_str!("captured/01-room_created.json"), plugnmeet, Happening::RoomCreated, 1_795_308_810),
            (include_str!("captured/02-room_started.json"), livekit, Happening::RoomStarted, 1_795_308_811),
            (include_str!("captured/03-participant_joined.json"), livekit, Happening::Joined(&teacher), 1_795_308_811),
            (include_str!("captured/05-participant_joined.json"), livekit, Happening::Joined(&bot), 1_795_308_813),
            (
                include_str!("captured/06-start_recording.json"),
                livekit,
                Happening::StartRecording(RECORD_ID),
                1_795_308_813,
            ),
            (
                include_str!("captured/08-participant_left.json"),
                livekit,
                Happening::Left(&student, "CLIENT_INITIATED"),
                1_795_308_815,
            ),
            (
                include_str!("captured/10-end_recording.json"),
                livekit,
                Happening::EndRecording(RECORD_ID),
                1_795_308_817,
            ),
            (
                include_str!("captured/13-recording_proceeded.json"),
                livekit,
                Happening::RecordingProceeded(RECORD_ID, 16_413_725),
                1_795_308_819,
            ),
            (include_str!("captured/18-session_ended.json"), plugnmeet, Happening::SessionEnded, 1_795_308_835),
            (include_str!("captured/19-room_finished.json"), livekit, Happening::RoomFinished, 1_795_308_835),
        ] {
            let captured: Value = serde_json::from_str(captured).unwrap();
            let captured = captured["body"].as_str().unwrap().as_bytes();
            let ours = room(created_at).webhook(happening, at(seconds)).body;
            assert_eq!(comparable(&ours), comparable(captured), "{}", happening.event());
        }
    }

    #[test]
    fn a_breakout_room_names_its_parent() {
        let room = Room { parent_room_id: Some("phys-9".into()), title: "\"A\"".into(), ..room(0) };
        let metadata: Value = serde_json::from_str(&room.metadata()).unwrap();
        assert_eq!(metadata["parent_room_id"], "phys-9");
        assert_eq!(metadata["is_breakout_room"], true);
        assert_eq!(metadata["room_title"], "\"A\"");
    }
}
