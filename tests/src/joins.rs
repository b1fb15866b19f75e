//! The simplest of events: somebody joins a room; and how many have come through.

use std::time::Duration;

use rollcall_shared::store::entity::{course_live_session, live_session_interval};
use sea_orm::{ActiveModelTrait as _, ActiveValue::Set, EntityTrait as _, PaginatorTrait as _};
use serde_json::{Value, json};

use crate::eventually;
use crate::installation::Installation;

/// A join of a person into a room, on a connection of their own.
pub fn join(room: &str, user: &str) -> Value {
    json!({"event": "participant_joined", "id": format!("EV_{room}_{user}"), "created_at": "1790000000",
           "room": {"sid": format!("sid-of-{room}"), "room_id": room},
           "participant": {"sid": format!("PA_{user}"), "identity": user, "name": user, "joined_at": "1790000000"}})
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
