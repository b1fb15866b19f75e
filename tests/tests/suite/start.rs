//! Programs that cannot do their work say what is wrong and how to put it right, and no password.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_tests::installation::{Installation, Process};

fn ingress_and_worker(installation: &Installation) -> [Process; 2] {
    [installation.spawn("rollcall-ingress", &[]), installation.spawn("rollcall-worker", &["rooms"])]
}

/// It ends badly, saying all of `texts` in its log.
async fn fails_with(mut process: Process, texts: &[&str]) {
    let status = process.ended().await;
    let log = process.log();
    assert!(!status.success(), "{log}");
    for text in texts {
        assert!(log.contains(text), "no {text:?} in {log}");
    }
    assert!(!log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let installation = Installation::new().await;
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.rooms", installation.prefix);
    // A classic one.
    let declared = channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default());
    declared.await.unwrap();
    for process in ingress_and_worker(&installation) {
        fails_with(process, &[&format!("queue {queue} exists on the broker with other arguments"), "delete it"]).await;
    }
}

#[tokio::test]
async fn a_broker_that_refuses_the_password_is_named_without_it() {
    let mut installation = Installation::new().await;
    installation.broker_url = installation.broker_url.replace(":guest@", ":hunter2@");
    for process in ingress_and_worker(&installation) {
        fails_with(process, &["refuses the connection", "guest:***@", "queue.url"]).await;
    }
}

#[tokio::test]
async fn tls_to_a_broker_that_speaks_none_is_said_and_tried_again() {
    let mut installation = Installation::new().await;
    installation.broker_url = installation.broker_url.replace("amqp://guest:guest@", "amqps://guest:hunter2@");
    for process in ingress_and_worker(&installation) {
        process.logs("the broker at amqps://guest:***@").await;
        process.logs("cannot be used now").await;
        assert!(!process.log().contains("hunter2"));
        process.stop().await;
    }
}

#[tokio::test]
async fn a_database_that_is_not_migrated_stops_a_worker() {
    let installation = Installation::new().await;
    Migrator::down(&installation.db, None).await.unwrap();
    for worker in ["attendance", "rooms", "recordings"] {
        fails_with(installation.spawn("rollcall-worker", &[worker]), &["rollcall migrate"]).await;
    }
}
