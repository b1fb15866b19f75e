//! Classes captured from a real PlugNMeet server, and the attendance that follows from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use rollcall_shared::store::entity::{course_live_session, live_session_user};
use sea_orm::{ColumnTrait as _, DatabaseConnection, EntityTrait as _, QueryFilter as _};

/// One request as it came.
#[derive(Debug, Clone, Deserialize)]
pub struct Request {
    /// What it is called, `03-participant_joined`.
    pub name: String,
    /// The key that signed it.
    pub api_key: String,
    /// The secret that signed it.
    pub secret: String,
    /// When it was signed, in Unix seconds.
    pub signed_at: i64,
    /// The headers on the wire.
    pub headers: BTreeMap<String, String>,
    /// The body on the wire.
    pub body: String,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/plugnmeet")
}

fn requests_in(directory: &Path) -> Vec<Request> {
    let mut files: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()).collect()
}

/// The captured classes, by name, each with its webhooks in order.
pub fn classes() -> BTreeMap<String, Vec<Request>> {
    let captured = std::fs::read_dir(directory().join("captured")).unwrap();
    captured
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), requests_in(&entry.path())))
        .collect()
}

/// Single requests for what the classes do not show.
pub fn requests() -> Vec<Request> {
    requests_in(&directory().join("requests"))
}

/// The attendance that follows from the classes, as the file has it.
pub fn expected() -> Value {
    serde_json::from_slice(&std::fs::read(directory().join("expected.json")).unwrap()).unwrap()
}

/// What the tables say of a source's rooms, in the shape of [`expected`].
pub async fn attendance(db: &DatabaseConnection, source: &str) -> Value {
    let mut rooms = serde_json::Map::new();
    let sessions = course_live_session::Entity::find().filter(course_live_session::Column::Source.eq(source));
    for session in sessions.all(db).await.unwrap() {
        let people = live_session_user::Entity::find().filter(live_session_user::Column::SessionId.eq(session.id));
        let people = people.all(db).await.unwrap().into_iter().map(|person| {
            let row = json!({
                "entered_at": person.entered_at.map(|at| at.timestamp()),
                "exited_at": person.exited_at.map(|at| at.timestamp()),
                "is_online": person.is_online,
                "join_count": person.join_count,
                "total_seconds": person.total_seconds,
            });
            (person.user_id, row)
        });
        let room = json!({
            "ended_at": session.ended_at.map(|at| at.timestamp()),
            "parent_room_id": session.parent_room_id,
            "people": people.collect::<serde_json::Map<_, _>>(),
            "room_sid": session.room_sid,
            "started_at": session.started_at.map(|at| at.timestamp()),
        });
        assert!(rooms.insert(session.room_id, room).is_none(), "{source} has a room twice");
    }
    rooms.into()
}
