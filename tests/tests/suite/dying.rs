//! What dies is in the table, once; what is sent back and applied is marked as such, what dies again is the same row; and
//! workers say that they run, and rest when they shall.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use chrono::Utc;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use rollcall_shared::dead_letters::{self, Purge, State};
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{Drained, Message, Queue, Replay};
use rollcall_shared::store::entity::{
    dead_letter as letter, dead_letter_change as change, dead_letter_failure as failure, live_session_interval,
    worker_pause, worker_process,
};
use rollcall_tests::installation::{Ingress, Installation};
use rollcall_tests::joins::{applied, intervals, join, join_of_nobody};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ConnectionTrait as _, DbBackend, EntityTrait as _, ModelTrait as _,
    PaginatorTrait as _, QueryOrder as _, Statement, TransactionTrait as _,
};

const LIMIT: Duration = Duration::from_secs(60);

rollcall_tests::on_both_back_ends!(
    what_dies_is_in_the_table_with_all_it_says,
    what_the_queue_gives_twice_is_one_failure,
    a_replay_that_is_applied_is_marked_with_its_effect,
    a_replay_that_has_nothing_to_do_is_done,
    a_replay_that_dies_again_is_the_same_row,
    what_was_applied_stays_applied_whatever_a_copy_of_it_does,
    of_two_replays_the_later_one_decides,
    a_poison_is_told_from_other_dead,
    what_waits_in_any_of_its_queues_is_taken_out,
    what_was_taken_out_and_not_confirmed_lies_where_it_lay,
    a_purge_leaves_alone_what_it_has_only_a_copy_of,
    what_an_operator_takes_out_is_dropped_and_taken_out_once,
    what_was_applied_or_dropped_is_not_kept_for_ever,
    a_paused_worker_takes_nothing_and_goes_on_after_it,
    a_worker_says_that_it_runs,
);

/// An installation in which events are posted and dead letters stored.
struct School {
    installation: Installation,
    _ingress: Ingress,
    sender: Sender,
}

impl School {
    async fn of(installation: Installation) -> Self {
        let ingress = installation.ingress().await;
        let sender = Sender::new(&installation, "main", ingress.address);
        Self { installation, _ingress: ingress, sender }
    }

    /// Has events of nobody die, and stores them.
    async fn dead(&self, count: usize) -> Vec<letter::Model> {
        for number in 0..count {
            self.sender.post(&join_of_nobody("class", number).to_string()).await;
        }
        let worker = self.installation.worker("attendance").await;
        let storing = self.installation.spawn("rollcall-worker", &["dead-letters"]);
        let dead = self.letters(count).await;
        worker.stop().await;
        storing.stop().await;
        dead
    }

    /// Waits until the table has so many rows.
    async fn letters(&self, count: usize) -> Vec<letter::Model> {
        eventually(LIMIT, || async {
            let letters = self.rows().await;
            if letters.len() == count { Ok(letters) } else { Err(format!("{} of {count} are stored", letters.len())) }
        })
        .await
    }

    async fn rows(&self) -> Vec<letter::Model> {
        letter::Entity::find().order_by_asc(letter::Column::Id).all(&self.installation.db).await.unwrap()
    }

    async fn becomes(&self, state: &str) -> letter::Model {
        eventually(LIMIT, || async {
            let row = self.rows().await.remove(0);
            if row.state == state { Ok(row) } else { Err(format!("it is {}", row.state)) }
        })
        .await
    }

    async fn failures(&self) -> Vec<failure::Model> {
        failure::Entity::find().order_by_asc(failure::Column::FailedAt).all(&self.installation.db).await.unwrap()
    }

    async fn has_failed_twice(&self) {
        eventually(LIMIT, || async {
            let failures = self.failures().await.len();
            if failures == 2 { Ok(()) } else { Err(format!("{failures} failures")) }
        })
        .await;
    }

    fn queue(&self) -> Queue {
        rollcall_shared::tls::use_ring();
        Queue::open(&self.installation.load_settings().queue, "the tests").unwrap()
    }

    /// Sends a dead letter back, as this replay, with this body, and marks it as an operator's tool does.
    async fn replay(&self, row: &letter::Model, number: i32, body: &str) {
        let mut message = Message::new("main", "participant_joined", Bytes::copy_from_slice(body.as_bytes()));
        message.id = row.message_id.parse().unwrap();
        message.replay = Some(Replay { dead_letter_id: row.id, number });
        let sender = self.queue().sender().await.unwrap();
        sender.send(WorkerName::Attendance, message, LIMIT).await.unwrap();
        sender.close().await;
        let marked = letter::ActiveModel {
            id: Set(row.id),
            state: Set("replaying".into()),
            replays: Set(number),
            ..Default::default()
        };
        marked.update(&self.installation.db).await.unwrap();
    }
}

async fn what_dies_is_in_the_table_with_all_it_says(mut installation: Installation) {
    installation.set("sessions.unknown", "reject");
    let school = School::of(installation).await;
    let nobody = join_of_nobody("class", 0).to_string();
    let mut with_nul = join_of_nobody("class", 1);
    with_nul["id"] = "EV_\0".into();
    school.sender.post(&nobody).await;
    school.sender.post(&with_nul.to_string()).await;
    school.sender.post("{\"event\": \"participant_joined\", \"participant\": {\"identity\": 7}}").await;
    let unannounced = join("unannounced", "a");
    school.sender.post(&unannounced.to_string()).await;
    let worker = school.installation.worker("attendance").await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let letters = school.letters(4).await;
    assert_eq!(broker::drained(&school.installation, LIMIT).await, BTreeMap::new());
    for process in [worker, storing] {
        process.stop().await;
    }

    let by_body = |body: &str| letters.iter().find(|row| row.body == body.as_bytes()).unwrap();
    let row = by_body(&nobody);
    assert_eq!((row.state.as_str(), row.kind.as_str(), row.cause.as_str()), ("dead", "permanent", "body-incomplete"));
    assert_eq!(row.error, "participant_joined has no participant");
    assert_eq!(
        (row.worker.as_str(), row.event.as_str(), row.source.as_str()),
        ("attendance", "participant_joined", "main")
    );
    assert_eq!((row.event_id.as_deref(), row.room_id.as_deref()), (Some("EV_class_nobody-0"), Some("class")));
    assert_eq!((row.user_id.as_deref(), row.attempts, row.replays), (None, 1, 0));
    assert_eq!(row.host.as_deref(), Some(rollcall_shared::queue::host().as_str()));
    assert!(row.received_at <= row.first_failed_at && row.first_failed_at <= row.last_failed_at);
    assert!((Utc::now() - row.received_at).num_seconds() < 120);
    let headers: serde_json::Value = serde_json::from_str(&row.headers).unwrap();
    assert_eq!(headers["rollcall-dead-kind"], "permanent");
    assert_eq!(headers["rollcall-received-at"], row.received_at.timestamp_millis());
    assert_eq!(by_body(&with_nul.to_string()).event_id.as_deref(), Some("EV_"));
    assert!(letters.iter().any(|row| row.cause == "body-unreadable"));

    let row = by_body(&unannounced.to_string());
    assert_eq!((row.kind.as_str(), row.cause.as_str()), ("exhausted", "session-unannounced"));
    assert_eq!((row.attempts, row.user_id.as_deref()), (4, Some("a")));
    assert!(row.first_failed_at < row.last_failed_at);

    let failures = school.failures().await;
    assert_eq!(failures.len(), 4);
    let of_row = failures.iter().find(|failure| failure.dead_letter_id == row.id).unwrap();
    assert_eq!((of_row.failed_at, of_row.replay, &of_row.error), (row.last_failed_at, 0, &row.error));
}

async fn what_the_queue_gives_twice_is_one_failure(installation: Installation) {
    let school = School::of(installation).await;
    school.sender.post(&join_of_nobody("class", 0).to_string()).await;
    let worker = school.installation.worker("attendance").await;
    broker::only_dead(&school.installation, 1, LIMIT).await;
    worker.stop().await;

    // Committed, and gone before the queue knows.
    let queue = school.queue();
    let mut drain = queue.drain(&Drained::Dead).await.unwrap();
    let dead = drain.next(10).await.unwrap();
    assert_eq!(dead.len(), 1);
    let tx = school.installation.db.begin().await.unwrap();
    dead_letters::record(&tx, &dead).await.unwrap();
    tx.commit().await.unwrap();
    drop((drain, queue));

    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    storing.logs("stored dead letters").await;
    assert_eq!(broker::drained(&school.installation, LIMIT).await, BTreeMap::new());
    storing.stop().await;
    assert_eq!((school.rows().await.len(), school.failures().await.len()), (1, 1));
}

async fn a_replay_that_is_applied_is_marked_with_its_effect(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(1).await;
    school.replay(&dead[0], 1, &join("class", "healed").to_string()).await;
    let worker = school.installation.worker("attendance").await;
    let row = school.becomes("applied").await;
    assert_eq!(intervals(&school.installation).await, 1);
    assert_eq!(row.replays, 1);
    assert!(row.applied_at.is_some());
    // Its neighbours too, many in one transaction.
    for user in 0..50 {
        school.sender.post(&join("class", &format!("user-{user}")).to_string()).await;
    }
    school.replay(&row, 2, &join("class", "healed").to_string()).await;
    applied(&school.installation, 51, LIMIT).await;
    assert_eq!(school.becomes("applied").await.replays, 2);
    worker.stop().await;
}

async fn a_replay_that_has_nothing_to_do_is_done(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(1).await;
    school.replay(&dead[0], 1, &join("class", "RECORDER_BOT").to_string()).await;
    let worker = school.installation.worker("attendance").await;
    assert_eq!(school.becomes("applied").await.replays, 1);
    assert_eq!(intervals(&school.installation).await, 0);
    worker.stop().await;
}

async fn a_replay_that_dies_again_is_the_same_row(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(1).await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let worker = school.installation.worker("attendance").await;
    school.replay(&dead[0], 1, "not even JSON").await;
    school.has_failed_twice().await;
    let row = school.becomes("dead").await;
    assert_eq!((row.id, row.replays, row.cause.as_str()), (dead[0].id, 1, "body-unreadable"));
    assert!(row.last_failed_at > dead[0].last_failed_at);
    // What it was is what it stays: a replay is not a new message.
    assert_eq!((row.first_failed_at, row.body.clone()), (dead[0].first_failed_at, dead[0].body.clone()));
    let failures = school.failures().await;
    assert_eq!((failures[0].replay, failures[1].replay), (0, 1));
    assert_eq!(school.rows().await.len(), 1);
    worker.stop().await;
    storing.stop().await;
}

async fn what_was_applied_stays_applied_whatever_a_copy_of_it_does(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(1).await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let worker = school.installation.worker("attendance").await;
    school.replay(&dead[0], 1, &join("class", "healed").to_string()).await;
    school.becomes("applied").await;
    // The same replay once more, as by a tool that was killed before it could mark it; and it dies.
    let mut message = Message::new("main", "participant_joined", Bytes::from_static(b"not even JSON"));
    message.id = dead[0].message_id.parse().unwrap();
    message.replay = Some(Replay { dead_letter_id: dead[0].id, number: 1 });
    let sender = school.queue().sender().await.unwrap();
    sender.send(WorkerName::Attendance, message, LIMIT).await.unwrap();
    school.has_failed_twice().await;
    let row = school.rows().await.remove(0);
    assert_eq!((row.state.as_str(), row.replays), ("applied", 1));
    worker.stop().await;
    storing.stop().await;
}

async fn of_two_replays_the_later_one_decides(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(1).await;
    // The first one waits somewhere, the second one, edited, is on its way.
    school.replay(&dead[0], 2, "{}").await;
    let queue = school.queue();
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let mut first = Message::new("main", "participant_joined", Bytes::from(join("class", "a").to_string()));
    first.id = dead[0].message_id.parse().unwrap();
    first.replay = Some(Replay { dead_letter_id: dead[0].id, number: 1 });
    // The later one dies first, and then the earlier one is applied; and the other way round.
    let worker = school.installation.worker("attendance").await;
    let row = school.becomes("dead").await;
    assert_eq!((row.replays, row.cause.as_str()), (2, "body-unreadable"));
    let sender = queue.sender().await.unwrap();
    sender.send(WorkerName::Attendance, first.clone(), LIMIT).await.unwrap();
    applied(&school.installation, 1, LIMIT).await;
    assert_eq!(school.rows().await[0].state, "dead");
    worker.stop().await;

    school.replay(&row, 3, "{}").await;
    first.replay = Some(Replay { dead_letter_id: dead[0].id, number: 2 });
    let tx = school.installation.db.begin().await.unwrap();
    dead_letters::applied(&tx, &[first.replayed().unwrap()]).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(school.rows().await[0].state, "replaying");
    let worker = school.installation.worker("attendance").await;
    assert_eq!(school.becomes("dead").await.replays, 3);
    sender.close().await;
    worker.stop().await;
    storing.stop().await;
}

async fn a_poison_is_told_from_other_dead(installation: Installation) {
    let school = School::of(installation).await;
    let mut poison = join("class", "somebody");
    poison["participant"]["name"] = "kill".into();
    school.sender.post(&poison.to_string()).await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let mut deaths = 0;
    let row = loop {
        let mut worker = school.installation.spawn("rollcall-poisoned-worker", &[]);
        tokio::select! {
            status = worker.ended() => assert!(!status.success()),
            mut rows = school.letters(1) => {
                worker.stop().await;
                break rows.remove(0);
            }
        }
        deaths += 1;
        assert!(deaths < 10, "the poison goes on killing");
    };
    storing.stop().await;
    assert_eq!((row.kind.as_str(), row.cause.as_str(), row.state.as_str()), ("poison", "poison", "dead"));
    assert_eq!(row.user_id.as_deref(), Some("somebody"));
}

async fn what_an_operator_takes_out_is_dropped_and_taken_out_once(installation: Installation) {
    let school = School::of(installation).await;
    for user in 0..250 {
        school.sender.post(&join("class", &format!("user-{user}")).to_string()).await;
    }
    let settings = school.installation.load_settings();
    let queue = school.queue();
    let depths = queue.depths(&settings).await.unwrap();
    assert_eq!((depths.workers[0].waiting, depths.unrouted), (250, 0));
    let waiting = Drained::Waiting(WorkerName::Attendance, settings.attendance.retry.clone());
    let mut drain = queue.drain(&waiting).await.unwrap();
    let mut dropped = 0;
    loop {
        let some = drain.next(100).await.unwrap();
        if some.is_empty() {
            break;
        }
        let tx = school.installation.db.begin().await.unwrap();
        let purge = Purge { run: "a-run".into(), who: "the tests".into(), reason: "nobody wants them".into() };
        dropped += dead_letters::purged(&tx, &some, &purge).await.unwrap();
        tx.commit().await.unwrap();
        drain.confirm().await.unwrap();
    }
    assert_eq!(queue.depths(&settings).await.unwrap().workers[0].waiting, 0);
    let rows = school.rows().await;
    assert_eq!((rows.len(), dropped), (250, 250));
    assert!(rows.iter().all(|row| row.state == "dropped" && row.cause == "purged" && row.attempts == 0));
    assert_eq!(school.failures().await.len(), 0);
    let changes = change::Entity::find().all(&school.installation.db).await.unwrap();
    assert_eq!(changes.len(), 250);
    assert_eq!(
        (changes[0].changed_by.as_str(), changes[0].reason.as_deref()),
        ("the tests", Some("nobody wants them"))
    );
    drop((drain, queue));
    // Nothing comes back before what comes after it.
    school.sender.post(&join("class", "after").to_string()).await;
    let worker = school.installation.worker("attendance").await;
    applied(&school.installation, 1, LIMIT).await;
    worker.stop().await;
    assert_eq!(intervals(&school.installation).await, 1);
}

/// Takes out what waits for the attendance worker, as dropped; how many dead letters that came to.
async fn purge(school: &School, queue: &Queue) -> u64 {
    let settings = school.installation.load_settings();
    let waiting = Drained::Waiting(WorkerName::Attendance, settings.attendance.retry.clone());
    let mut drain = queue.drain(&waiting).await.unwrap();
    let mut dropped = 0;
    loop {
        let some = drain.next(100).await.unwrap();
        if some.is_empty() {
            return dropped;
        }
        let tx = school.installation.db.begin().await.unwrap();
        let purge = Purge { run: "a-run".into(), who: "the tests".into(), reason: "nobody wants them".into() };
        dropped += dead_letters::purged(&tx, &some, &purge).await.unwrap();
        tx.commit().await.unwrap();
        drain.confirm().await.unwrap();
    }
}

async fn what_waits_in_any_of_its_queues_is_taken_out(mut installation: Installation) {
    installation.set("sessions.unknown", "reject");
    installation.set("attendance.retry", "1h,2h");
    let school = School::of(installation).await;
    // Some wait for their next try, one is a suspect, and some wait for their first.
    for user in 0..3 {
        school.sender.post(&join("class", &format!("failed-{user}")).to_string()).await;
    }
    let worker = school.installation.worker("attendance").await;
    let settings = school.installation.load_settings();
    let queue = school.queue();
    let depth = async || queue.depths(&settings).await.unwrap().workers[0];
    eventually(LIMIT, || async {
        let depth = depth().await;
        if depth.retrying == 3 { Ok(()) } else { Err(format!("{depth:?}")) }
    })
    .await;
    worker.stop().await;
    school.sender.post(&join("class", "suspect").to_string()).await;
    let holder = school.installation.spawn("rollcall-holder", &["--count", "1"]);
    holder.logs("has taken what it wants").await;
    holder.kill().await;
    let looking = school.installation.spawn("rollcall-holder", &["--count", "1"]);
    eventually(LIMIT, || async {
        let depth = depth().await;
        if depth.suspects == 1 { Ok(()) } else { Err(format!("{depth:?}")) }
    })
    .await;
    looking.kill().await;
    for user in 0..2 {
        school.sender.post(&join("class", &format!("new-{user}")).to_string()).await;
    }
    let before = eventually(LIMIT, || async {
        let depth = depth().await;
        if depth.waiting == 2 { Ok(depth) } else { Err(format!("{depth:?}")) }
    })
    .await;
    assert_eq!((before.retrying, before.suspects), (3, 1));

    assert_eq!(purge(&school, &queue).await, 6);
    let after = depth().await;
    assert_eq!((after.waiting, after.retrying, after.suspects), (0, 0, 0));
    let rows = school.rows().await;
    assert_eq!(rows.len(), 6);
    for row in rows {
        let failed = row.user_id.as_ref().unwrap().starts_with("failed-");
        assert_eq!(row.error.contains("has not announced"), failed, "{}", row.error);
        assert!(row.error.ends_with("it waited, and was purged: nobody wants them"), "{}", row.error);
        assert_eq!(row.attempts, i32::from(failed));
        assert!(row.first_failed_at <= row.last_failed_at && row.replay_run.as_deref() == Some("a-run"));
    }
}

async fn what_was_taken_out_and_not_confirmed_lies_where_it_lay(installation: Installation) {
    let school = School::of(installation).await;
    for user in 0..5 {
        school.sender.post(&join("class", &format!("user-{user}")).to_string()).await;
    }
    let settings = school.installation.load_settings();
    let queue = school.queue();
    let waiting = Drained::Waiting(WorkerName::Attendance, settings.attendance.retry.clone());
    let mut drain = queue.drain(&waiting).await.unwrap();
    assert_eq!(drain.next(3).await.unwrap().len(), 3);
    // What comes in after it has begun is not taken out.
    school.sender.post(&join("class", "late").to_string()).await;
    assert_eq!(drain.next(10).await.unwrap().len(), 2);
    assert_eq!(drain.next(10).await.unwrap().len(), 0);
    drop(drain);
    eventually(LIMIT, || async {
        let waiting = queue.depths(&settings).await.unwrap().workers[0].waiting;
        if waiting == 6 { Ok(()) } else { Err(format!("{waiting} wait")) }
    })
    .await;
    let again = queue.drain(&waiting).await.unwrap().next(10).await.unwrap();
    assert_eq!(again.len(), 6);
    let worker = school.installation.worker("attendance").await;
    applied(&school.installation, 6, LIMIT).await;
    worker.stop().await;
}

async fn a_purge_leaves_alone_what_it_has_only_a_copy_of(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(3).await;
    for row in &dead {
        school.replay(row, 1, &join("class", &format!("user-{}", row.id)).to_string()).await;
    }
    let set = async |row: &letter::Model, state: &str, replays: i32| {
        let change = letter::ActiveModel {
            id: Set(row.id),
            state: Set(state.into()),
            replays: Set(replays),
            ..Default::default()
        };
        change.update(&school.installation.db).await.unwrap();
    };
    // The first is confirmed and not yet marked, the second was applied by a copy, the third was sent once more since.
    set(&dead[0], "dead", 0).await;
    set(&dead[1], "applied", 1).await;
    set(&dead[2], "replaying", 2).await;
    assert_eq!(purge(&school, &school.queue()).await, 1);
    let states: Vec<_> = school.rows().await.into_iter().map(|row| (row.state, row.replays)).collect();
    assert_eq!(states, [("dropped".to_owned(), 1), ("applied".to_owned(), 1), ("replaying".to_owned(), 2)]);
}

#[tokio::test]
async fn what_a_stranger_puts_among_the_dead_keeps_no_other_from_being_stored() {
    let school = School::of(Installation::new().await).await;
    let worker = school.installation.worker("attendance").await;
    worker.stop().await;
    let connection =
        Connection::connect(&school.installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    // A time that there is, in milliseconds, and that no database has.
    const FAR: i64 = 8_000_000_000_000_000;
    let mut headers = FieldTable::default();
    for (name, value) in [("rollcall-received-at", -FAR), ("rollcall-last-failed-at", FAR)] {
        headers.insert(name.into(), AMQPValue::LongLongInt(value));
    }
    headers.insert("rollcall-dead-kind".into(), AMQPValue::LongString("permanent".into()));
    for (name, length) in [("rollcall-dead-cause", 5_000), ("rollcall-source", 9_000), ("rollcall-last-error", 20_000)]
    {
        headers.insert(name.into(), AMQPValue::LongString("\0é".repeat(length).into()));
    }
    for headers in [headers, FieldTable::default()] {
        let (queue, body) = (format!("{}.attendance.dead", school.installation.prefix), b"\0 no JSON");
        let properties = BasicProperties::default().with_headers(headers);
        let published =
            channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, properties);
        published.await.unwrap();
    }
    school.sender.post(&join_of_nobody("class", 0).to_string()).await;
    let worker = school.installation.worker("attendance").await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    // Both of the stranger's have the same body, and so are one.
    let rows = school.letters(2).await;
    assert!(rows.iter().any(|row| row.body == b"\0 no JSON"));
    assert_eq!(broker::drained(&school.installation, LIMIT).await, BTreeMap::new());
    worker.stop().await;
    storing.stop().await;
}

#[tokio::test]
async fn what_is_being_restored_is_not_removed() {
    let school = School::of(Installation::new().await).await;
    let dead = school.dead(1).await;
    let long_ago = Utc::now() - chrono::TimeDelta::days(100);
    let old = letter::ActiveModel {
        id: Set(dead[0].id),
        state: Set("dropped".into()),
        updated_at: Set(long_ago),
        ..Default::default()
    };
    old.update(&school.installation.db).await.unwrap();
    let tx = school.installation.db.begin().await.unwrap();
    let restored = letter::ActiveModel {
        id: Set(dead[0].id),
        state: Set("dead".into()),
        updated_at: Set(Utc::now()),
        ..Default::default()
    };
    restored.update(&tx).await.unwrap();
    let db = school.installation.db.clone();
    let pruning = tokio::spawn(async move {
        dead_letters::prune(&db, &[State::Applied, State::Dropped], Utc::now() - chrono::TimeDelta::days(90)).await
    });
    // It waits for the row.
    eventually(LIMIT, || async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        let waiting = Statement::from_string(DbBackend::Postgres, waiting);
        let waiting = school.installation.db.query_one_raw(waiting).await.unwrap().unwrap();
        let waiting: i64 = waiting.try_get_by_index(0).unwrap();
        if waiting > 0 { Ok(()) } else { Err("nobody waits".to_owned()) }
    })
    .await;
    tx.commit().await.unwrap();
    assert_eq!(pruning.await.unwrap().unwrap(), 0);
    assert_eq!(school.rows().await[0].state, "dead");
}

async fn what_was_applied_or_dropped_is_not_kept_for_ever(installation: Installation) {
    let school = School::of(installation).await;
    let dead = school.dead(4).await;
    let long_ago = Utc::now() - chrono::TimeDelta::days(100);
    for (row, (state, updated_at)) in
        dead.iter().zip([("applied", long_ago), ("dropped", long_ago), ("dead", long_ago), ("applied", Utc::now())])
    {
        let mut row: letter::ActiveModel = row.clone().into();
        row.state = Set(state.into());
        row.updated_at = Set(updated_at);
        row.update(&school.installation.db).await.unwrap();
    }
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let left = school.letters(2).await;
    storing.stop().await;
    assert_eq!(left.iter().map(|row| row.id).collect::<Vec<_>>(), [dead[2].id, dead[3].id]);
    assert_eq!(school.failures().await.len(), 2, "their failures go with them");
}

async fn a_paused_worker_takes_nothing_and_goes_on_after_it(installation: Installation) {
    let school = School::of(installation).await;
    let worker = school.installation.worker("attendance").await;
    school.sender.post(&join("class", "before").to_string()).await;
    applied(&school.installation, 1, LIMIT).await;
    let pause = worker_pause::ActiveModel {
        worker: Set("attendance".into()),
        paused_at: Set(Utc::now()),
        paused_by: Set("the tests".into()),
        reason: Set(Some("to see".into())),
    };
    let pause = pause.insert(&school.installation.db).await.unwrap();
    worker.logs("resting").await;
    let is = |state: &'static str| {
        let db = school.installation.db.clone();
        eventually(LIMIT, move || {
            let db = db.clone();
            async move {
                let process = worker_process::Entity::find().one(&db).await.unwrap();
                let found = process.map(|process| process.state);
                if found.as_deref() == Some(state) { Ok(()) } else { Err(format!("{found:?}")) }
            }
        })
    };
    is("paused").await;
    for user in ["a", "b", "c"] {
        school.sender.post(&join("class", user).to_string()).await;
    }
    // One that starts meanwhile rests from the start on.
    let another = school.installation.spawn("rollcall-worker", &["attendance"]);
    another.logs("resting").await;
    let waiting = || async { broker::depths(&school.installation).await.unwrap().get("attendance").copied() };
    assert_eq!((waiting().await, intervals(&school.installation).await), (Some(3), 1));
    another.stop().await;

    pause.delete(&school.installation.db).await.unwrap();
    applied(&school.installation, 4, LIMIT).await;
    is("taking").await;
    worker.stop().await;
}

async fn a_worker_says_that_it_runs(installation: Installation) {
    let school = School::of(installation).await;
    let worker = school.installation.worker("attendance").await;
    // The first time, it may still be on its way to the broker.
    let process = eventually(LIMIT, || async {
        let process = worker_process::Entity::find().one(&school.installation.db).await.unwrap();
        process.filter(|process| process.state == "taking").ok_or_else(|| "nobody takes".to_owned())
    })
    .await;
    assert_eq!(process.worker, "attendance");
    assert_eq!((process.pid, process.settled, process.in_flight), (i64::from(worker.id()), 0, 0));
    assert_eq!(process.host, rollcall_shared::queue::host());
    for user in 0..30 {
        school.sender.post(&join("class", &format!("user-{user}")).to_string()).await;
    }
    eventually(LIMIT, || async {
        let process = worker_process::Entity::find().one(&school.installation.db).await.unwrap().unwrap();
        let has_told = process.settled == 30 && process.rate > 0.0;
        if has_told { Ok(()) } else { Err(format!("{process:?}")) }
    })
    .await;
    worker.stop().await;
    assert_eq!(worker_process::Entity::find().count(&school.installation.db).await.unwrap(), 0);
    assert_eq!(live_session_interval::Entity::find().count(&school.installation.db).await.unwrap(), 30);
}

#[tokio::test]
async fn what_the_database_does_not_take_stays_in_the_queue() {
    let school = School::of(Installation::new().await).await;
    let worker = school.installation.worker("attendance").await;
    school.installation.set_in_database("default_transaction_read_only = on").await;
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    storing.logs("taking dead letters").await;
    for number in 0..3 {
        school.sender.post(&join_of_nobody("class", number).to_string()).await;
    }
    storing.logs("dead letters cannot be stored").await;
    school.installation.set_in_database("default_transaction_read_only = off").await;
    school.letters(3).await;
    assert_eq!(broker::drained(&school.installation, LIMIT).await, BTreeMap::new());
    worker.stop().await;
    storing.stop().await;
}
