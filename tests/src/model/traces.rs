//! What an event looks like on its way in, and by what it is told again wherever it may be.

use std::collections::BTreeMap;

use chrono::DateTime;
use rollcall_shared::store::entity::{
    course_live_session as session, dead_letter as letter, live_session_interval as interval,
    live_session_recording as recording, live_session_start as start, live_session_user as user,
};
use sea_orm::{DatabaseConnection, DbErr, EntityTrait as _};
use serde_json::{Value, json};

use super::books::{Books, Kind, Place, Seen};

/// When everything happens, in Unix seconds. What is told by its time happens its number of seconds later.
const TIME: i64 = 1_790_000_000;
/// How many rooms the classes are in.
pub(super) const ROOMS: u32 = 8;

/// The room of an event.
pub(super) fn room(number: u32, kind: Kind) -> String {
    match kind {
        Kind::Finish => format!("R{number}"),
        Kind::Unannounced => format!("late-{}", number % ROOMS),
        Kind::Recording => "room-0".to_owned(),
        _ => format!("room-{}", number % ROOMS),
    }
}

/// The recording of an event.
pub(super) fn record_id(number: u32) -> String {
    format!("REC_{number}")
}

/// The body that is posted.
pub(super) fn body(number: u32, kind: Kind) -> String {
    let room = room(number, kind);
    let event = match kind {
        Kind::Join | Kind::Nobody | Kind::Unannounced | Kind::Bot => "participant_joined",
        Kind::Leave => "participant_left",
        Kind::Start => "room_started",
        Kind::Finish => "room_finished",
        Kind::Recording => "recording_proceeded",
        Kind::Unwanted => "track_published",
    };
    let mut body = json!({"event": event, "id": format!("EV_{number}"), "created_at": TIME.to_string(),
                          "room": {"sid": format!("sid-of-{room}"), "room_id": room}});
    match kind {
        Kind::Join | Kind::Leave | Kind::Unannounced => body["participant"] = person(&format!("P{number}"), number),
        Kind::Bot => body["participant"] = person("RECORDER_BOT", number),
        Kind::Start => body["created_at"] = (TIME + i64::from(number)).to_string().into(),
        Kind::Recording => body["recording_info"] = json!({"record_id": record_id(number)}),
        Kind::Nobody | Kind::Finish | Kind::Unwanted => {}
    }
    body.to_string()
}

fn person(identity: &str, number: u32) -> Value {
    json!({"sid": format!("PA_{number}"), "identity": identity, "name": identity, "joined_at": TIME.to_string()})
}

/// The number of what is called like this.
pub(super) fn number(name: &str, prefix: &str) -> Option<u32> {
    name.strip_prefix(prefix)?.parse().ok()
}

/// What the tables tell.
///
/// # Errors
/// The database.
pub(super) async fn in_tables(db: &DatabaseConnection, books: &dyn Fn(u32) -> Option<Kind>) -> Result<Seen, DbErr> {
    let mut seen = Seen::default();
    for row in interval::Entity::find().all(db).await? {
        let told = number(&row.participant_sid, "PA_").filter(|number| row.user_id == format!("P{number}"));
        let has_left = told.and_then(books) == Some(Kind::Leave);
        seen.applied(told.filter(|_| row.left_at.is_some() == has_left), &row);
    }
    for row in user::Entity::find().all(db).await? {
        if row.join_count != 1 {
            seen.strange.push(format!("{} has joined {} times", row.user_id, row.join_count));
        }
    }
    for row in start::Entity::find().all(db).await? {
        seen.applied(u32::try_from(row.started_at.timestamp() - TIME).ok(), &row);
    }
    let finished = DateTime::from_timestamp(TIME, 0);
    for row in session::Entity::find().all(db).await?.into_iter().filter(|row| row.ended_at.is_some()) {
        seen.applied(number(&row.room_id, "R").filter(|_| row.ended_at == finished), &row);
    }
    for row in recording::Entity::find().all(db).await?.into_iter().filter(|row| row.status == "ready") {
        seen.applied(number(&row.record_id, "REC_"), &row);
    }
    for row in letter::Entity::find().all(db).await? {
        let place = if row.state == "dropped" { Place::Dropped } else { Place::Dead(row.kind.clone()) };
        seen.found(row.event_id.as_deref().and_then(|id| number(id, "EV_")), place, &row);
    }
    Ok(seen)
}

impl Seen {
    fn applied(&mut self, number: Option<u32>, row: &impl std::fmt::Debug) {
        self.found(number, Place::Applied, row);
    }

    fn found(&mut self, number: Option<u32>, place: Place, row: &impl std::fmt::Debug) {
        match number {
            Some(number) => self.places.entry(number).or_default().push(place),
            None => self.strange.push(format!("{row:?}")),
        }
    }

    /// What waits in queues besides: each a queue and an event's id.
    pub(super) fn and_waiting(mut self, waiting: Vec<(String, String)>) -> Self {
        for (queue, id) in waiting {
            self.found(number(&id, "EV_"), Place::Waiting(queue.clone()), &(queue, id));
        }
        self
    }
}

/// How many of these are of each kind, with one of their numbers.
pub(super) fn summary(books: &Books, numbers: &[u32]) -> String {
    if numbers.is_empty() {
        return "none".to_owned();
    }
    let mut kinds = BTreeMap::<_, Vec<_>>::new();
    for number in numbers {
        kinds.entry(books.kind(*number)).or_default().push(number);
    }
    let told = |(kind, numbers): (&Option<Kind>, &Vec<&u32>)| {
        let name = kind.map_or_else(|| "?".to_owned(), |kind| format!("{kind:?}"));
        format!("{} × {name} (such as EV_{})", numbers.len(), numbers[0])
    };
    kinds.iter().map(told).collect::<Vec<_>>().join(", ")
}
