//! The simplest of events: somebody joins a room; and how many have come through.

use std::sync::Arc;
use std::time::Duration;

use rollcall_shared::store::entity::{course_live_session, live_session_interval};
use sea_orm::{ActiveModelTrait as _, ActiveValue::Set, EntityTrait as _, PaginatorTrait as _};
use serde_json::{Value, json};

use crate::installation::Installation;
use crate::{eventually, fixtures};

/// A join of a person into a room, on a connection of their own.
pub fn join(room: &str, user: &str) -> Value {
    json!({"event": "participant_joined", "id": format!("EV_{room}_{user}"), "created_at": "1790000000",
           "room": {"sid": format!("sid-of-{room}"), "room_id": room},
           "participant": {"sid": format!("PA_{user}"), "identity": user, "name": user, "joined_at": "1790000000"}})
}

/// A join as a real server tells of it, of some 4 KB, but for who joins which room.
#[derive(Debug, Clone)]
pub struct CapturedJoin(Arc<str>);

impl CapturedJoin {
    /// One of the captured classes'.
    pub fn load() -> Self {
        let captured = fixtures::classes().into_values().flatten();
        let mut bodies = captured.filter_map(|request| serde_json::from_str::<Value>(&request.body).ok());
        let mut body = bodies.find(|body| body["event"] == "participant_joined").unwrap();
        body["id"] = "EV_@PERSON@".into();
        body["room"]["sid"] = "sid-of-@ROOM@".into();
        body["room"]["room_id"] = "@ROOM@".into();
        body["participant"]["sid"] = Self::sid("@PERSON@").into();
        body["participant"]["identity"] = "@PERSON@".into();
        Self(body.to_string().into())
    }

    /// A person's join into a room.
    pub fn of(&self, room: &str, person: &str) -> String {
        self.0.replace("@ROOM@", room).replace("@PERSON@", person)
    }

    /// The connection that a person joins on.
    pub fn sid(person: &str) -> String {
        format!("PA_{person}")
    }
}

/// A join that no waiting makes any better: it does not say who.
pub fn join_of_nobody(room: &str, number: usize) -> Value {
    let mut body = join(room, &format!("nobody-{number}"));
    body.as_object_mut().unwrap().remove("participant");
    body
}

/// How many intervals there are.
pub async fn intervals(installation: &Installation) -> u64 {
    live_session_interval::Entity::find().count(&installation.db).await.unwrap()
}

/// Waits until there are as many intervals.
pub async fn applied(installation: &Installation, count: u64, limit: Duration) {
    eventually(limit, || async {
        // It may be the database that is away.
        let found = live_session_interval::Entity::find().count(&installation.db).await.map_err(|e| e.to_string())?;
        if found >= count { Ok(()) } else { Err(format!("{found} of {count} are applied")) }
    })
    .await;
}

/// Makes a session as an LMS does that knows of a class before anybody comes.
pub async fn announce(installation: &Installation, room: &str, subject: &str) -> course_live_session::Model {
    let announced = course_live_session::ActiveModel {
        source: Set("main".into()),
        room_id: Set(room.into()),
        subject: Set(Some(subject.into())),
        ..Default::default()
    };
    announced.insert(&installation.db).await.unwrap()
}
