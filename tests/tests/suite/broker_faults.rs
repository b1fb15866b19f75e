//! A broker that goes, comes back, is short of memory, or lacks what was declared on it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reqwest::StatusCode;
use rollcall_tests::installation::{Ingress, Installation};
use rollcall_tests::joins::{announce, applied, intervals, join, join_of_nobody};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::services::{self, Server};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
async fn a_broker_that_restarts_and_is_killed_under_load_costs_nothing() {
    let rabbitmq = Server::rabbitmq("restarted-broker").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    let ingress = installation.ingress().await;
    let _workers = installation.attendance_and_rooms(2).await;
    let load = Load::start(&installation, ingress.address);
    // RabbitMQ 3.10 forgets a quorum queue that it is killed within a second of declaring.
    sleep(Duration::from_secs(2)).await;
    rabbitmq.stop().await;
    rabbitmq.start().await;
    load.goes_on(200, LIMIT).await;
    rabbitmq.kill().await;
    rabbitmq.start().await;
    load.goes_on(200, LIMIT).await;

    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
}

#[tokio::test]
async fn an_exchange_that_is_deleted_under_a_worker_is_made_anew_and_no_failed_event_is_stuck() {
    let mut installation = Installation::new().await;
    installation.set("sessions.unknown", "reject");
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    broker::delete_exchange(&installation, "moves").await;
    // It fails as long as its session is not there, and there is no way to the queue where it shall wait.
    sender.post(&join("announced-late", "a").to_string()).await;
    worker.logs("the channel for moving messages has ended").await;
    announce(&installation, "announced-late", "Algebra").await;
    applied(&installation, 1, LIMIT).await;
    // By the way that was made anew.
    sender.post(&join_of_nobody("announced-late", 0).to_string()).await;
    broker::only_dead(&installation, 1, LIMIT).await;
    worker.stop().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::from([("attendance.dead".to_owned(), 1)]));
}

/// Waits until the ingress is ready, and says `text` about that.
async fn ready_and_says(ingress: &Ingress, text: &str) {
    eventually(LIMIT, || async {
        let (status, says) = ingress.readiness().await;
        assert_eq!(status, StatusCode::OK, "{says}");
        if says.contains(text) { Ok(()) } else { Err(format!("/readyz says {says}")) }
    })
    .await;
}

/// Waits until the broker has no more of the attendance worker's deliveries than so many, acknowledged by nobody.
async fn unacknowledged(rabbitmq: &Server, installation: &Installation, count: usize) {
    let queue = format!("{}.attendance", installation.prefix);
    eventually(LIMIT, || async {
        let queues = rabbitmq.rabbitmqctl(&["list_queues", "--quiet", "name", "messages"]).await;
        let found = queues.lines().find_map(|line| line.strip_prefix(&queue)?.trim().parse::<usize>().ok());
        if found == Some(count) { Ok(()) } else { Err(format!("{found:?} of {count} in {queues}")) }
    })
    .await;
}

#[tokio::test]
async fn a_broker_short_of_memory_takes_nothing_which_refuses_nobody_and_nothing_comes_of_it_twice() {
    const GOOD: usize = 30;
    const BAD: usize = 10;
    let rabbitmq = Server::rabbitmq("alarmed-broker").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for number in 0..GOOD {
        sender.post(&join("alarmed", &format!("user-{number}")).to_string()).await;
    }
    for number in 0..BAD {
        sender.post(&join_of_nobody("alarmed", number).to_string()).await;
    }
    rabbitmq.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    sender.post(&join("alarmed", "meanwhile").to_string()).await;
    // The broker says so to a connection only once something was published on it.
    ready_and_says(&ingress, "the broker takes no messages: events are kept on disk").await;
    sender.post(&join("alarmed", "meanwhile-too").to_string()).await;

    // Deliveries come all the same. Those that fail cannot be moved; those that do not are acknowledged.
    let worker = installation.worker("attendance").await;
    applied(&installation, GOOD as u64, LIMIT).await;
    unacknowledged(&rabbitmq, &installation, BAD).await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());

    rabbitmq.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    ready_and_says(&ingress, "ready\n").await;
    sender.post(&join("alarmed", "afterwards").to_string()).await;
    applied(&installation, GOOD as u64 + 3, LIMIT).await;
    broker::drained(&installation, LIMIT).await;
    worker.stop().await;
    assert_eq!(intervals(&installation).await, GOOD as u64 + 3);
    let dead: Vec<_> = broker::dead(&installation, "attendance").await.into_iter().map(|(body, _)| body).collect();
    assert_eq!((dead.len(), dead.into_iter().collect::<BTreeSet<_>>().len()), (BAD, BAD), "some are dead twice");
    assert_eq!(broker::depths(&installation).await.unwrap().len(), 1);
}

/// Posts joins of ever new people until told to stop; how many. Panics where one is not accepted.
async fn post_all(client: usize, sender: Sender, stop: CancellationToken) -> u64 {
    let mut number = 0;
    while !stop.is_cancelled() {
        sender.post(&join("reconnected", &format!("user-{client}-{number}")).to_string()).await;
        number += 1;
    }
    number
}

#[tokio::test]
async fn a_connection_that_the_broker_closes_refuses_nobody() {
    const CLIENTS: usize = 4;
    let rabbitmq = Server::rabbitmq("closing-broker").await;
    let mut installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    // Long enough for any machine to connect again.
    installation.set("ingress.confirm_timeout", "20s");
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let (mut clients, stop) = (JoinSet::new(), CancellationToken::new());
    for client in 0..CLIENTS {
        clients.spawn(post_all(client, Sender::new(&installation, "main", ingress.address), stop.clone()));
    }
    for closed in 1..=3 {
        rabbitmq.rabbitmqctl(&["close_all_connections", "an operator wants it"]).await;
        eventually(LIMIT, || async {
            let found = ingress.process.log().matches("connected to the broker").count();
            if found >= closed { Ok(()) } else { Err(format!("connected anew {found} times, not {closed}")) }
        })
        .await;
        applied(&installation, intervals(&installation).await + 50, LIMIT).await;
    }
    stop.cancel();
    let posted = clients.join_all().await.into_iter().sum();
    applied(&installation, posted, LIMIT).await;
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
    worker.stop().await;
    assert_eq!(intervals(&installation).await, posted);
}
