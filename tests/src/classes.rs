//! Classes made up from who was truly there and when, so that what to expect is not the product's rule over again.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use rollcall_shared::store::entity::{course_live_session, live_session_user};
use sea_orm::{ColumnTrait as _, DatabaseConnection, EntityTrait as _, QueryFilter as _};
use serde_json::{Value, json};

/// A class: its truth, and the webhooks that a server would send of it.
#[derive(Debug, Clone)]
pub struct Class {
    /// The room.
    pub room_id: String,
    sid: String,
    /// When the class ended.
    pub ended_at: i64,
    /// For each person, the seconds of the class in which they were there.
    pub present: BTreeMap<String, Vec<bool>>,
    /// The webhooks in the order they happened.
    pub webhooks: Vec<Value>,
}

/// When every made-up class begins.
const BEGIN: i64 = 1_790_000_000;

impl Class {
    /// A class of `people`, in a room of this name. The truth is drawn second by second: who is in the room in which second.
    pub fn random(room_id: &str, people: usize, rng: &mut impl rand::Rng) -> Self {
        let length: usize = rng.random_range(20..200);
        let end = BEGIN + length as i64;
        let mut class = Self {
            room_id: room_id.to_owned(),
            sid: format!("sid-of-{room_id}"),
            ended_at: end,
            present: BTreeMap::new(),
            webhooks: Vec::new(),
        };
        let mut timed = vec![(BEGIN, class.event("room_started", BEGIN))];
        for person in 0..people {
            let user = format!("user-{person}");
            let present = seconds(length, rng);
            for (connection, (from, until)) in runs(&present).into_iter().enumerate() {
                let (joined, left) = (BEGIN + from as i64, BEGIN + until as i64);
                let sid = format!("PA_{room_id}_{person}_{connection}");
                timed.push((joined, class.participant("participant_joined", joined, &user, &sid, joined)));
                timed.push((left, class.participant("participant_left", left, &user, &sid, joined)));
            }
            if present.iter().any(|there| *there) {
                class.present.insert(user, present);
            }
        }
        timed.push((end, class.event("room_finished", end)));
        timed.push((end, class.event("session_ended", end)));
        timed.sort_by_key(|(at, _)| *at);
        class.webhooks = timed.into_iter().map(|(_, event)| event).collect();
        class
    }

    /// The webhooks in any order, about a third of them twice.
    pub fn shuffled(&self, rng: &mut impl rand::Rng) -> Vec<String> {
        let mut webhooks: Vec<String> = self.webhooks.iter().map(ToString::to_string).collect();
        let twice: Vec<_> = webhooks.iter().filter(|_| rng.random_ratio(1, 3)).cloned().collect();
        webhooks.extend(twice);
        webhooks.shuffle(rng);
        webhooks
    }

    /// How the tables differ from the truth, if they do.
    pub async fn check(&self, db: &DatabaseConnection, source: &str) -> Result<(), String> {
        let session = course_live_session::Entity::find()
            .filter(course_live_session::Column::Source.eq(source))
            .filter(course_live_session::Column::RoomId.eq(&self.room_id));
        let session =
            session.one(db).await.map_err(|e| e.to_string())?.ok_or(format!("{} has no session", self.room_id))?;
        if session.ended_at.map(|at| at.timestamp()) != Some(self.ended_at) {
            return Err(format!("{} ended at {:?}, not {}", self.room_id, session.ended_at, self.ended_at));
        }
        let people = live_session_user::Entity::find().filter(live_session_user::Column::SessionId.eq(session.id));
        let found: BTreeMap<_, _> = people
            .all(db)
            .await
            .map_err(|error| error.to_string())?
            .into_iter()
            .map(|row| (row.user_id, (row.total_seconds, row.is_online, row.join_count)))
            .collect();
        let truth: BTreeMap<_, _> = self
            .present
            .iter()
            .map(|(user, present)| {
                let total = present.iter().filter(|there| **there).count() as i64;
                (user.clone(), (total, false, runs(present).len() as i32))
            })
            .collect();
        if found == truth { Ok(()) } else { Err(format!("{}: {found:?} is not the truth: {truth:?}", self.room_id)) }
    }

    fn event(&self, event: &str, at: i64) -> Value {
        json!({"event": event, "id": format!("EV_{}_{event}_{at}", self.room_id), "created_at": at.to_string(),
               "room": {"sid": self.sid, "room_id": self.room_id}})
    }

    fn participant(&self, event: &str, at: i64, user: &str, sid: &str, joined_at: i64) -> Value {
        let mut body = self.event(event, at);
        body["id"] = format!("EV_{event}_{sid}").into();
        body["participant"] = json!({"sid": sid, "identity": user, "name": format!("Name of {user}"),
            "joined_at": joined_at.to_string(), "joined_at_ms": (joined_at * 1000 + 7).to_string()});
        body
    }
}

/// In which seconds a person is there: in and out at random, with gaps.
fn seconds(length: usize, rng: &mut impl rand::Rng) -> Vec<bool> {
    let mut there = rng.random_ratio(1, 2);
    let mut seconds = vec![false; length];
    let mut second = 0;
    while second < length {
        let until = (second + rng.random_range(1..40)).min(length);
        seconds[second..until].fill(there);
        there = !there;
        second = until;
    }
    seconds
}

/// The runs of seconds in which a person is there without a break: from, until.
fn runs(present: &[bool]) -> Vec<(usize, usize)> {
    let mut runs = Vec::new();
    let mut from = None;
    for (second, there) in present.iter().copied().chain([false]).enumerate() {
        match (from, there) {
            (None, true) => from = Some(second),
            (Some(start), false) => {
                runs.push((start, second));
                from = None;
            }
            _ => {}
        }
    }
    runs
}
