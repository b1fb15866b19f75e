//! A room's end racing the joins and leaves of its people, over several processes; and all of them racing whoever derives
//! people's rows again.

use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use futures_util::stream;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rollcall_shared::store::entity::{course_live_session, live_session_interval, live_session_user};
use rollcall_tests::eventually;
use rollcall_tests::installation::Installation;
use rollcall_tests::webhooks::Sender;
use rollcall_workers::rebuild::{Selection, rebuild};
use rustix::process::Signal;
use sea_orm::{ColumnTrait as _, DatabaseConnection, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 1_000;
const ROOMS_AT_ONCE: usize = 10;
const PEOPLE: i64 = 4;
const BEGIN: i64 = 1_790_000_000;
const END: i64 = BEGIN + 600;

/// A room whose people have never been seen before. Of every other person the leave is missing.
fn round(round: usize) -> Vec<String> {
    let event = |event: &str, at: i64, participant: Option<Value>| {
        let mut body = json!({"event": event, "id": format!("EV_{round}_{event}_{at}"), "created_at": at.to_string(),
                              "room": {"sid": format!("sid-{round}"), "room_id": format!("room-{round}")}});
        if let Some(participant) = participant {
            body["participant"] = participant;
        }
        body.to_string()
    };
    let mut events = vec![event("room_finished", END - 1, None), event("session_ended", END, None)];
    for person in 0..PEOPLE {
        let joined_at = BEGIN + person;
        let participant = json!({"sid": format!("PA_{round}_{person}"), "identity": format!("{round}-{person}"),
                                 "joined_at": joined_at.to_string()});
        events.push(event("participant_joined", joined_at, Some(participant.clone())));
        if person % 2 == 0 {
            events.push(event("participant_left", BEGIN + 300 + person, Some(participant)));
        }
    }
    events
}

/// A leave says when; where it is missing, the end of the room does.
fn total(person: i64) -> i64 {
    if person % 2 == 0 { 300 } else { END - BEGIN - person }
}

/// Every event of so many rounds is in the tables: the ends, the joins and the leaves.
async fn applied(db: &DatabaseConnection, rounds: usize) -> Result<(), String> {
    let ended = course_live_session::Entity::find().filter(course_live_session::Column::EndedAt.gte(time(END)));
    let joined = live_session_interval::Entity::find();
    let left = live_session_interval::Entity::find().filter(live_session_interval::Column::LeftAt.is_not_null());
    let counts = [ended.count(db).await, joined.count(db).await, left.count(db).await].map(Result::unwrap);
    let people = rounds as u64 * PEOPLE as u64;
    if counts == [rounds as u64, people, people / 2] {
        Ok(())
    } else {
        Err(format!("{counts:?} after {rounds} rounds"))
    }
}

fn time(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(seconds, 0).unwrap()
}

#[tokio::test]
async fn nobody_stays_online_and_no_total_is_short_when_a_room_ends_while_people_come_and_go() {
    let mut installation = Installation::new().await;
    // Small batches at once, so that many transactions meet in the same sessions.
    installation.set("workers.batch_size", 4);
    installation.set("workers.batch_wait", "0ms");
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);

    let workers = installation.attendance_and_rooms(3).await;
    let mut rng = StdRng::seed_from_u64(7);
    for first in (0..ROUNDS).step_by(ROOMS_AT_ONCE) {
        let mut events: Vec<_> = (first..first + ROOMS_AT_ONCE).flat_map(round).collect();
        events.shuffle(&mut rng);
        // All six wait until everything is there and then begin together: left alone, one of the two kinds gets ahead of
        // the other, and nothing races.
        workers.iter().for_each(|worker| worker.signal(Signal::STOP));
        let sender = &sender;
        stream::iter(events).for_each_concurrent(24, |event| async move { sender.post(&event).await }).await;
        workers.iter().for_each(|worker| worker.signal(Signal::CONT));
        eventually(Duration::from_secs(60), || applied(&installation.db, first + ROOMS_AT_ONCE)).await;
    }
    for worker in workers {
        worker.stop().await;
    }

    let db = &installation.db;
    assert_eq!(course_live_session::Entity::find().count(db).await.unwrap(), ROUNDS as u64);
    let online = live_session_user::Entity::find().filter(live_session_user::Column::IsOnline.eq(true));
    assert_eq!(online.count(db).await.unwrap(), 0, "people stayed online in ended sessions");
    let people = live_session_user::Entity::find().all(db).await.unwrap();
    assert_eq!(people.len(), ROUNDS * PEOPLE as usize);
    let short: Vec<_> = people
        .iter()
        .filter(|row| {
            let person = row.user_id.rsplit_once('-').unwrap().1.parse().unwrap();
            row.total_seconds != total(person)
        })
        .collect();
    assert!(short.is_empty(), "{} totals are wrong, such as {:?}", short.len(), short[0]);
}

/// How often it has derived everybody's row, and how many it has found other than they must be.
async fn derive_again_and_again(db: DatabaseConnection, stop: CancellationToken) -> (usize, u64) {
    let (mut passes, mut changed) = (0, 0);
    while !stop.is_cancelled() {
        changed += rebuild(&db, &Selection::default(), |_| {}).await.unwrap().changed;
        passes += 1;
    }
    (passes, changed)
}

#[tokio::test]
async fn who_derives_rows_again_beside_workers_finds_each_as_it_must_be_at_any_time() {
    const ROUNDS: usize = 150;
    let mut installation = Installation::new().await;
    installation.set("workers.batch_size", 4);
    installation.set("workers.batch_wait", "0ms");
    let ingress = installation.ingress().await;
    let sender = &Sender::new(&installation, "main", ingress.address);
    let _workers = installation.attendance_and_rooms(2).await;
    let stop = CancellationToken::new();
    let deriving: Vec<_> =
        (0..2).map(|_| tokio::spawn(derive_again_and_again(installation.db.clone(), stop.clone()))).collect();

    let mut events: Vec<_> = (0..ROUNDS).flat_map(round).collect();
    events.shuffle(&mut StdRng::seed_from_u64(8));
    stream::iter(events).for_each_concurrent(24, |event| async move { sender.post(&event).await }).await;
    eventually(Duration::from_secs(60), || applied(&installation.db, ROUNDS)).await;
    stop.cancel();
    for deriving in deriving {
        let (passes, changed) = deriving.await.unwrap();
        assert!(passes > 10, "only {passes} passes");
        assert_eq!(changed, 0, "rows were found wrong in {passes} passes");
    }
}
