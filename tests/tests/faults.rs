//! What breaks, and that nothing is lost, nothing is there twice, and nothing is dead that was not to blame.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::store::entity::{course_live_session, live_session_interval};
use rollcall_tests::installation::Installation;
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::services::{self, Server};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use sea_orm::{ActiveModelTrait as _, ActiveValue::Set, EntityTrait as _, PaginatorTrait as _};
use serde_json::{Value, json};
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(120);

/// A join of a person into a room, on a connection of their own.
fn join(room: &str, user: &str) -> Value {
    json!({"event": "participant_joined", "id": format!("EV_{room}_{user}"), "created_at": "1790000000",
           "room": {"sid": format!("sid-of-{room}"), "room_id": room},
           "participant": {"sid": format!("PA_{user}"), "identity": user, "name": user, "joined_at": "1790000000"}})
}

async fn intervals(installation: &Installation) -> u64 {
    live_session_interval::Entity::find().count(&installation.db).await.unwrap()
}

/// Waits until there are as many intervals.
async fn applied(installation: &Installation, count: u64) {
    eventually(LIMIT, || async {
        let found = intervals(installation).await;
        if found >= count { Ok(()) } else { Err(format!("{found} of {count} are applied")) }
    })
    .await;
}

/// Waits until nothing is in any queue but so many dead letters of the attendance worker.
async fn only_dead(installation: &Installation, count: u32) {
    let expected = BTreeMap::from([("attendance.dead".to_owned(), count)]);
    eventually(LIMIT, || async {
        let depths = broker::depths(installation).await?;
        if depths == expected { Ok(()) } else { Err(format!("{depths:?}")) }
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_restarts_and_is_killed_under_load_costs_nothing() {
    let rabbitmq = Server::rabbitmq("restarted-broker").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(2).await;
    let load = Load::start(&installation, ingress.address);
    // RabbitMQ 3.10 forgets a quorum queue that it is killed within a second of declaring.
    sleep(Duration::from_secs(4)).await;
    rabbitmq.stop().await;
    rabbitmq.start().await;
    sleep(Duration::from_secs(6)).await;
    rabbitmq.kill().await;
    rabbitmq.start().await;
    sleep(Duration::from_secs(6)).await;

    let accepted = load.stop().await;
    assert!(accepted.len() > 100, "only {} were accepted", accepted.len());
    all_applied(&installation, &accepted, LIMIT).await;
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
}

#[tokio::test]
async fn a_database_that_is_away_for_a_minute_costs_no_attempt() {
    let postgres = Server::postgres("database-away").await;
    let installation = Installation::on(&services::shared_broker(), &postgres.url).await;
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let load = Load::start(&installation, ingress.address);
    applied(&installation, 50).await;
    postgres.kill().await;
    sleep(Duration::from_secs(60)).await;
    postgres.start().await;
    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
    let failed = workers.iter().filter(|worker| worker.log().contains("an event failed")).count();
    assert_eq!(failed, 0, "an attempt was spent on the outage");
}

#[tokio::test]
async fn programs_that_are_stopped_and_killed_under_load_lose_nothing() {
    let mut installation = Installation::new().await;
    installation.set("workers.batch_size", 20);
    let mut ingress = installation.ingress().await;
    let load = Load::start(&installation, ingress.address);
    let mut worker = installation.worker("attendance").await;
    for round in 0..6 {
        // Each has done some work before it goes.
        applied(&installation, intervals(&installation).await + 20).await;
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

#[tokio::test]
async fn only_the_poisons_die_of_a_batch() {
    let installation = Installation::new().await;
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
            () = only_dead(&installation, POISONS) => break worker,
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

#[tokio::test]
async fn a_panic_in_a_rule_is_a_failure_and_not_a_dead_process() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for user in ["a", "panic", "b"] {
        sender.post(&join("panicking", user).to_string()).await;
    }
    let worker = installation.spawn("rollcall-poisoned-worker", &[]);
    only_dead(&installation, 1).await;
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
    let mut nobody = join("broken", "nobody");
    nobody.as_object_mut().unwrap().remove("participant");
    // PostgreSQL takes no NUL in a text: that is only found out in the middle of the batch's transaction.
    let nul = join("broken", "nul\0");
    for body in [&join("broken", "a"), &nobody, &join("broken", "b"), &nul, &join("broken", "c")] {
        sender.post(&body.to_string()).await;
    }
    let worker = installation.worker("attendance").await;
    only_dead(&installation, 2).await;
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

#[tokio::test]
async fn a_session_that_only_the_lms_may_open_is_waited_for_and_given_up_in_the_end() {
    let mut installation = Installation::new().await;
    installation.set("sessions.unknown", "reject");
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("never-announced", "a").to_string()).await;
    sender.post(&join("announced-late", "b").to_string()).await;
    worker.logs("an event failed and is tried again later").await;
    let announced = course_live_session::ActiveModel {
        source: Set("main".into()),
        room_id: Set("announced-late".into()),
        subject: Set(Some("What the LMS calls it".into())),
        ..Default::default()
    };
    let announced = announced.insert(&installation.db).await.unwrap();

    only_dead(&installation, 1).await;
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

#[tokio::test]
async fn a_worker_that_is_stopped_has_settled_what_it_took() {
    let installation = Installation::new().await;
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
    applied(&installation, 300).await;
    assert!(!worker.log().contains("came back unacknowledged"), "{}", worker.log());
    worker.stop().await;
}
