//! Programs that die, events that kill, and that nothing is lost, nothing is there twice, and nothing is dead that was not
//! to blame. What breaks around the programs is in `broker_faults.rs` and `database_faults.rs`.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::store::entity::{course_live_session, live_session_user};
use rollcall_tests::broker::{self, only_dead};
use rollcall_tests::installation::Installation;
use rollcall_tests::joins::{announce, applied, intervals, join, join_of_nobody};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::webhooks::Sender;
use sea_orm::EntityTrait as _;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(120);

rollcall_tests::on_both_back_ends!(
    programs_that_are_stopped_and_killed_under_load_lose_nothing,
    only_the_poisons_die_of_a_batch,
    a_panic_in_a_rule_is_a_failure_and_not_a_dead_process,
    a_session_that_only_the_lms_may_open_is_waited_for_and_given_up_in_the_end,
    a_worker_that_is_stopped_has_settled_what_it_took,
    a_nul_in_what_only_people_read_kills_no_event,
);

async fn programs_that_are_stopped_and_killed_under_load_lose_nothing(mut installation: Installation) {
    installation.set("workers.batch_size", 20);
    let mut ingress = installation.ingress().await;
    let load = Load::start(&installation, ingress.address);
    let mut worker = installation.worker("attendance").await;
    for round in 0..6 {
        // Each has done some work before it goes.
        applied(&installation, intervals(&installation).await + 20, LIMIT).await;
        let next_ingress = installation.ingress().await;
        load.go_to(next_ingress.address);
        let (old_ingress, old_worker) = (std::mem::replace(&mut ingress, next_ingress).process, worker);
        if round % 2 == 0 {
            old_ingress.kill().await;
            old_worker.kill().await;
        } else {
            old_ingress.stop().await;
            old_worker.stop().await;
        }
        worker = installation.worker("attendance").await;
    }
    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
    worker.stop().await;
}

async fn only_the_poisons_die_of_a_batch(installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    const POISONS: u32 = 3;
    for person in 0..100 * POISONS {
        let mut event = join("poisoned", &format!("user-{person}"));
        if person % 100 == 50 {
            event["participant"]["name"] = "kill".into();
        }
        sender.post(&event.to_string()).await;
    }
    // As a supervisor would, start it again whenever it dies.
    let mut deaths = 0;
    let worker = loop {
        let mut worker = installation.spawn("rollcall-poisoned-worker", &[]);
        tokio::select! {
            status = worker.ended() => assert!(!status.success()),
            () = only_dead(&installation, POISONS, LIMIT) => break worker,
        }
        deaths += 1;
        assert!(deaths < 10 * POISONS, "the poison goes on killing");
    };
    assert!(deaths > 0);
    worker.stop().await;
    assert_eq!(intervals(&installation).await, u64::from(99 * POISONS));
    for (body, _) in broker::dead(&installation, "attendance").await {
        assert!(body.contains("\"kill\""), "{body}");
    }
}

async fn a_panic_in_a_rule_is_a_failure_and_not_a_dead_process(installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for user in ["a", "panic", "b"] {
        sender.post(&join("panicking", user).to_string()).await;
    }
    let worker = installation.spawn("rollcall-poisoned-worker", &[]);
    only_dead(&installation, 1, LIMIT).await;
    worker.stop().await;
    assert_eq!(intervals(&installation).await, 2);
    let (_, headers) = broker::dead(&installation, "attendance").await.remove(0);
    assert_eq!(headers["rollcall-dead-kind"], "exhausted");
    assert!(headers["rollcall-last-error"].contains("panicked"), "{headers:?}");
}

#[tokio::test]
async fn what_cannot_be_understood_is_dead_at_once_and_its_neighbours_are_applied() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let nobody = join_of_nobody("broken", 0);
    // PostgreSQL takes no NUL in a text: that is only found out in the middle of the batch's transaction.
    let nul = join("broken", "nul\0");
    for body in [&join("broken", "a"), &nobody, &join("broken", "b"), &nul, &join("broken", "c")] {
        sender.post(&body.to_string()).await;
    }
    let worker = installation.worker("attendance").await;
    only_dead(&installation, 2, LIMIT).await;
    worker.stop().await;
    assert_eq!(intervals(&installation).await, 3);
    let dead = broker::dead(&installation, "attendance").await;
    let reasons: BTreeMap<_, _> = dead.iter().map(|(body, headers)| (body.clone(), headers)).collect();
    let parse = reasons[&nobody.to_string()];
    assert_eq!(parse["rollcall-last-error"], "participant_joined has no participant");
    for headers in reasons.values() {
        assert_eq!(headers["rollcall-dead-kind"], "permanent", "{headers:?}");
        assert_eq!(headers["rollcall-attempt"], "1");
        assert!(headers["rollcall-first-failed-at"] <= headers["rollcall-last-failed-at"]);
        assert_eq!(headers["rollcall-source"], "main");
    }
}

async fn a_session_that_only_the_lms_may_open_is_waited_for_and_given_up_in_the_end(mut installation: Installation) {
    installation.set("sessions.unknown", "reject");
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("never-announced", "a").to_string()).await;
    sender.post(&join("announced-late", "b").to_string()).await;
    worker.logs("an event failed and is tried again later").await;
    let announced = announce(&installation, "announced-late", "What the LMS calls it").await;

    only_dead(&installation, 1, LIMIT).await;
    worker.stop().await;
    let (body, headers) = broker::dead(&installation, "attendance").await.remove(0);
    assert!(body.contains("never-announced"));
    assert_eq!(headers["rollcall-dead-kind"], "exhausted");
    // Once, and once after each delay of the schedule.
    assert_eq!(headers["rollcall-attempt"], "4");
    let sessions = course_live_session::Entity::find().all(&installation.db).await.unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!((sessions[0].id, sessions[0].room_sid.as_deref()), (announced.id, Some("sid-of-announced-late")));
    assert_eq!(sessions[0].subject.as_deref(), Some("What the LMS calls it"));
}

async fn a_worker_that_is_stopped_has_settled_what_it_took(installation: Installation) {
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for person in 0..300 {
        sender.post(&join("stopped", &format!("user-{person}")).to_string()).await;
    }
    let worker = installation.worker("attendance").await;
    worker.stop().await;
    let done = intervals(&installation).await;
    let waiting =
        u64::from(broker::depths(&installation).await.unwrap().get("attendance").copied().unwrap_or_default());
    assert_eq!(done + waiting, 300, "{done} are applied and {waiting} wait");
    // Had it left something unacknowledged, that would come back as a suspect.
    let worker = installation.worker("attendance").await;
    applied(&installation, 300, LIMIT).await;
    assert!(!worker.log().contains("came back unacknowledged"), "{}", worker.log());
    worker.stop().await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_or_that_is_full_stops_no_work() {
    let (reader, nobody_reads) = std::io::pipe().unwrap();
    drop(reader);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for stderr in [nobody_reads.into(), full.into()] {
        let installation = Installation::new().await;
        let ingress = installation.ingress().await;
        let sender = Sender::new(&installation, "main", ingress.address);
        let worker = installation.spawn_logging_to(stderr, "rollcall-worker", &["attendance"]);
        for (count, user) in (1..).zip(["a", "b"]) {
            sender.post(&join("unlogged", user).to_string()).await;
            applied(&installation, count, LIMIT).await;
        }
        // One that is told in the log as well.
        sender.post(&join_of_nobody("unlogged", 0).to_string()).await;
        only_dead(&installation, 1, LIMIT).await;
        worker.stop().await;
    }
}

async fn a_nul_in_what_only_people_read_kills_no_event(installation: Installation) {
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let mut joined = join("nul", "a");
    joined["participant"]["name"] = "A\0nna".into();
    let mut left = joined.clone();
    left["event"] = "participant_left".into();
    left["participant"]["disconnect_reason"] = "CLIENT\0_INITIATED".into();
    let metadata = json!({"room_title": "Alge\0bra", "parent_room_id": "\0"}).to_string();
    let started = json!({"event": "room_started", "id": "EV_1", "created_at": "1790000000",
                         "room": {"sid": "sid-of-nul", "room_id": "nul", "metadata": metadata}});
    for body in [started, joined, left] {
        sender.post(&body.to_string()).await;
    }
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
    for worker in workers {
        worker.stop().await;
    }
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
    let session = course_live_session::Entity::find().one(&installation.db).await.unwrap().unwrap();
    assert_eq!((session.subject.as_deref(), session.parent_room_id), (Some("Algebra"), None));
    let person = live_session_user::Entity::find().one(&installation.db).await.unwrap().unwrap();
    assert_eq!((person.name.as_deref(), person.is_online), (Some("Anna"), false));
}
