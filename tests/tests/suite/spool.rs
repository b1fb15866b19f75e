//! The ingress's spool: a broker that is away, frozen, or back too late, and nobody who posts notices.

#![allow(clippy::print_stdout, reason = "what a run came to is shown")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use reqwest::StatusCode;
use rollcall_shared::config::SecretUrl;
use rollcall_shared::store;
use rollcall_tests::installation::{Ingress, Installation};
use rollcall_tests::joins::{intervals, join};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::services::{self, Server};
use rollcall_tests::steady::{Answer, Steady, quantile};
use rollcall_tests::webhooks::{Scheme, Sender};
use rollcall_tests::{broker, eventually};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio::sync::{Mutex, MutexGuard};

const LIMIT: Duration = Duration::from_secs(180);
/// Events a second.
const RATE: u32 = 500;
/// What every answer comes within, whatever the broker does: PlugNMeet waits for longer.
const ANSWER: Duration = Duration::from_secs(1);

/// These tests take times, and each starts a broker: one after the other.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

async fn installation_on(rabbitmq: &Server) -> Installation {
    Installation::on(&rabbitmq.url, &services::shared_postgres()).await
}

/// Waits until the ingress says at `/readyz` that it takes events, and `text`.
async fn ready_and_says(ingress: &Ingress, text: &str) {
    eventually(LIMIT, || async {
        let (status, says) = ingress.readiness().await;
        assert_eq!(status, StatusCode::OK, "{says}");
        if says.contains(text) { Ok(()) } else { Err(format!("/readyz says {says}")) }
    })
    .await;
}

/// Waits until the broker has everything that the ingress's spool had.
async fn handed_over(ingress: &Ingress) {
    eventually(LIMIT, || async {
        let (_, says) = ingress.readiness().await;
        if says == "ready\n" { Ok(()) } else { Err(says) }
    })
    .await;
    eventually(LIMIT, || async {
        let events = ingress.metric("rollcall_spool_events").await;
        let open = ingress.metric("rollcall_spool_open").await;
        if (events, open) == (Some(0.0), Some(0.0)) { Ok(()) } else { Err(format!("{events:?} events, open {open:?}")) }
    })
    .await;
    assert_eq!(ingress.metric("rollcall_spool_oldest_seconds").await, Some(0.0));
}

/// Waits until the ingress's metrics tell that events are kept, and since when.
async fn metrics_tell_of_an_outage(ingress: &Ingress) {
    eventually(LIMIT, || async {
        let mut found = Vec::new();
        for name in ["rollcall_spool_events", "rollcall_spool_oldest_seconds", "rollcall_spool_open"] {
            found.push((name, ingress.metric(name).await));
        }
        if found.iter().all(|(_, value)| value.is_some_and(|value| value > 0.0)) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

/// How many events are in the spool's file.
async fn spooled(installation: &Installation) -> u64 {
    let url = format!("sqlite://{}/data/spool.db", installation.directory.display());
    let file = store::connect(&SecretUrl::parse(&url).unwrap(), 1).await.unwrap();
    let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) FROM message");
    let count: i64 = file.query_one_raw(count).await.unwrap().unwrap().try_get_by_index(0).unwrap();
    count.try_into().unwrap()
}

fn all_accepted_in_time(answers: &[Answer]) {
    let refused = answers.iter().filter(|answer| !answer.accepted).count();
    let slow = answers.iter().filter(|answer| answer.took > ANSWER).count();
    let times = [0.5, 0.99, 1.0].map(|share| quantile(answers, share));
    println!("{} answers, p50, p99 and max {times:?}", answers.len());
    assert_eq!((refused, slow), (0, 0), "of {} answers some were not 200, or late: {times:?}", answers.len());
}

/// One outage under load: until so many events were spooled, and the broker has them.
async fn outage(rabbitmq: &Server, load: &Steady, ingress: &Ingress, events: usize) {
    load.goes_on(events, LIMIT).await;
    ready_and_says(ingress, "events are kept on disk").await;
    metrics_tell_of_an_outage(ingress).await;
    rabbitmq.start().await;
    handed_over(ingress).await;
    // By the broker again.
    load.goes_on(RATE as usize, LIMIT).await;
}

#[tokio::test]
async fn a_broker_that_is_stopped_under_load_is_noticed_by_nobody_who_posts() {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq("stopped-under-load").await;
    let installation = installation_on(&rabbitmq).await;
    let ingress = installation.ingress().await;
    let _worker = installation.worker("attendance").await;
    let load = Steady::start(installation.keys("main"), &[ingress.address], RATE);
    load.goes_on(2 * RATE as usize, LIMIT).await;
    rabbitmq.stop().await;
    outage(&rabbitmq, &load, &ingress, 10 * RATE as usize).await;
    let answers = load.stop().await;
    all_accepted_in_time(&answers.all);
    all_applied(&installation, &answers.accepted, LIMIT).await;
    assert_eq!(intervals(&installation).await, answers.accepted.len() as u64);
    assert_eq!(spooled(&installation).await, 0);
}

#[tokio::test]
#[ignore = "takes some minutes: make soak"]
async fn a_broker_that_is_stopped_for_a_minute_and_killed_three_times_is_noticed_by_nobody_who_posts() {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq("stopped-and-killed").await;
    let installation = installation_on(&rabbitmq).await;
    let ingress = installation.ingress().await;
    let _worker = installation.worker("attendance").await;
    let load = Steady::start(installation.keys("main"), &[ingress.address], RATE);
    // RabbitMQ 3.10 forgets a quorum queue that it is killed within a second of declaring.
    load.goes_on(3 * RATE as usize, LIMIT).await;
    rabbitmq.stop().await;
    outage(&rabbitmq, &load, &ingress, 60 * RATE as usize).await;
    for _ in 0..3 {
        rabbitmq.kill().await;
        outage(&rabbitmq, &load, &ingress, 5 * RATE as usize).await;
    }
    let answers = load.stop().await;
    all_accepted_in_time(&answers.all);
    all_applied(&installation, &answers.accepted, LIMIT).await;
    assert_eq!(intervals(&installation).await, answers.accepted.len() as u64);
    assert_eq!(spooled(&installation).await, 0);
}

/// Kills the ingress so often while it spools, each time after it has taken some; then the broker comes back.
async fn killed_while_it_spools(name: &str, times: usize) {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq(name).await;
    let installation = installation_on(&rabbitmq).await;
    let mut ingress = installation.ingress().await;
    let load = Load::start(&installation, ingress.address);
    load.goes_on(100, LIMIT).await;
    rabbitmq.stop().await;
    for _ in 0..times {
        load.goes_on(rand::rng().random_range(1..200), LIMIT).await;
        ingress.process.kill().await;
        ingress = installation.ingress().await;
        load.go_to(ingress.address);
    }
    load.goes_on(100, LIMIT).await;
    let accepted = load.stop().await;
    assert!(spooled(&installation).await >= times as u64);
    rabbitmq.start().await;
    let _worker = installation.worker("attendance").await;
    handed_over(&ingress).await;
    all_applied(&installation, &accepted, LIMIT).await;
}

#[tokio::test]
async fn an_ingress_that_is_killed_while_it_spools_has_lost_nothing() {
    killed_while_it_spools("killed-while-spooling", 5).await;
}

#[tokio::test]
#[ignore = "takes a minute: make soak"]
async fn an_ingress_that_is_killed_fifty_times_while_it_spools_has_lost_nothing() {
    killed_while_it_spools("killed-fifty-times-while-spooling", 50).await;
}

#[tokio::test]
async fn a_spool_that_is_full_refuses_for_a_while_and_takes_again_once_it_is_handed_over() {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq("full-spool").await;
    let mut installation = installation_on(&rabbitmq).await;
    installation.set("ingress.spool.max_bytes", 200_000);
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    rabbitmq.stop().await;
    let mut accepted = BTreeSet::new();
    let refused = loop {
        let user = format!("user-{}", accepted.len());
        let answer = sender.send(&join("full", &user).to_string(), Scheme::Token).await.unwrap();
        if answer.status() != StatusCode::OK {
            break answer;
        }
        accepted.insert(format!("PA_{user}"));
        assert!(accepted.len() < 10_000, "200 kB hold no end of events");
    };
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "15");
    assert!(accepted.len() > 50, "200 kB hold but {} events", accepted.len());
    let (status, says) = ingress.readiness().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{says}");
    assert!(says.contains("full"), "{says}");

    rabbitmq.start().await;
    handed_over(&ingress).await;
    sender.post(&join("full", "afterwards").to_string()).await;
    accepted.insert("PA_afterwards".to_owned());
    // There is room for the next outage.
    rabbitmq.stop().await;
    sender.post(&join("full", "next-outage").to_string()).await;
    accepted.insert("PA_next-outage".to_owned());
    ready_and_says(&ingress, "events are kept on disk").await;
    rabbitmq.start().await;
    let _worker = installation.worker("attendance").await;
    all_applied(&installation, &accepted, LIMIT).await;
}

#[tokio::test]
async fn a_broker_that_is_frozen_slows_only_the_first_and_gets_little_twice() {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq("frozen").await;
    let installation = installation_on(&rabbitmq).await;
    let ingress = installation.ingress().await;
    let load = Steady::start(installation.keys("main"), &[ingress.address], RATE);
    load.goes_on(2 * RATE as usize, LIMIT).await;
    rabbitmq.freeze().await;
    ingress.process.logs("they are kept on disk until it does").await;
    let opened = Instant::now();
    ready_and_says(&ingress, "events are kept on disk").await;
    // Past the heartbeats after which the connection is given up.
    load.goes_on(30 * RATE as usize, LIMIT).await;
    metrics_tell_of_an_outage(&ingress).await;
    let thawed = Instant::now();
    rabbitmq.thaw().await;
    handed_over(&ingress).await;
    let answers = load.stop().await;
    all_accepted_in_time(&answers.all);
    let once_open = answers.between(opened, thawed);
    println!("p99 once open {:?}", quantile(&once_open, 0.99));
    assert!(quantile(&once_open, 0.99) < Duration::from_millis(50), "p99 {:?}", quantile(&once_open, 0.99));

    // Twice is what was on its way when the broker froze (a confirm time-out's worth), and what it was tried with since.
    let queued = queued(&installation, answers.accepted.len()).await;
    let twice = queued - answers.accepted.len();
    println!("{twice} of {queued} are on the broker twice");
    assert!(twice < RATE as usize, "{twice} are on the broker twice");
    let _worker = installation.worker("attendance").await;
    all_applied(&installation, &answers.accepted, LIMIT).await;
    assert_eq!(intervals(&installation).await, answers.accepted.len() as u64);
}

/// How many events wait for the attendance worker, once there are as many as that.
async fn queued(installation: &Installation, at_least: usize) -> usize {
    eventually(LIMIT, || async {
        let depths = broker::depths(installation).await?;
        let queued = depths.get("attendance").copied().unwrap_or_default() as usize;
        if queued >= at_least { Ok(queued) } else { Err(format!("{queued} of {at_least} are queued")) }
    })
    .await
}

#[tokio::test]
async fn what_one_ingress_has_not_handed_over_when_it_is_killed_another_does() {
    let _alone = alone().await;
    let rabbitmq = Server::rabbitmq("shared-spool").await;
    let installation = installation_on(&rabbitmq).await;
    let (one, other) = (installation.ingress().await, installation.ingress().await);
    rabbitmq.stop().await;
    let load = Steady::start(installation.keys("main"), &[one.address, other.address], RATE);
    load.goes_on(10 * RATE as usize, LIMIT).await;
    let answers = load.stop().await;
    all_accepted_in_time(&answers.all);
    let before = spooled(&installation).await;
    assert_eq!(before, answers.accepted.len() as u64);

    rabbitmq.start().await;
    eventually(LIMIT, || async {
        let left = spooled(&installation).await;
        // More than the one that the broker is tried with.
        if left + 100 < before { Ok(()) } else { Err(format!("{left} of {before} are left")) }
    })
    .await;
    one.process.kill().await;
    let left = spooled(&installation).await;
    println!("{left} of {before} were left when one was killed");
    assert!(left > 0, "all was handed over before one could be killed");
    handed_over(&other).await;
    assert_eq!(spooled(&installation).await, 0);
    let _worker = installation.worker("attendance").await;
    all_applied(&installation, &answers.accepted, LIMIT).await;
}
