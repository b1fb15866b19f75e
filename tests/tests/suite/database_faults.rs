//! A database that goes, comes back, falls silent, or takes no writes: nothing is lost, and no event is to blame.

use std::collections::BTreeMap;
use std::time::Duration;

use rollcall_shared::store;
use rollcall_shared::store::entity::live_session_user;
use rollcall_tests::installation::{Installation, Process};
use rollcall_tests::joins::{applied, intervals, join};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::proxy::Proxy;
use rollcall_tests::services::{self, Server};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use sea_orm::{ConnectionTrait as _, DbBackend, EntityTrait as _, Statement};
use serde_json::json;
use tokio::time::sleep;

const LIMIT: Duration = Duration::from_secs(120);
/// What a worker says that waits for the database.
const AWAY: &str = "the database is away";

/// Nothing waits, nothing is dead, and nothing was even tried in vain.
async fn no_event_was_to_blame(installation: &Installation, workers: &[Process]) {
    assert_eq!(broker::drained(installation, LIMIT).await, BTreeMap::new());
    for worker in workers {
        assert!(!worker.log().contains("an event failed"), "an attempt was spent: {}", worker.log());
    }
}

#[tokio::test]
async fn a_database_that_is_away_for_a_minute_costs_no_attempt() {
    let postgres = Server::postgres("database-away").await;
    let installation = Installation::on(&services::shared_broker(), &postgres.url).await;
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let load = Load::start(&installation, ingress.address);
    applied(&installation, 50, LIMIT).await;
    postgres.kill().await;
    sleep(Duration::from_secs(60)).await;
    postgres.start().await;
    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    no_event_was_to_blame(&installation, &workers).await;
}

#[tokio::test]
async fn rollcall_up_takes_webhooks_while_its_database_is_not_there_yet() {
    let postgres = Server::postgres("database-not-yet").await;
    let installation = Installation::on(&services::shared_broker(), &postgres.url).await;
    postgres.stop().await;
    let up = installation.up().await;
    let (status, why) = up.readiness().await;
    assert_eq!((status.as_u16(), why.contains("the database is not there yet")), (503, true), "{why}");
    let sender = Sender::new(&installation, "main", up.address);
    sender.post(&join("early", "a").to_string()).await;
    postgres.start().await;
    applied(&installation, 1, LIMIT).await;
    eventually(LIMIT, || async {
        let (status, said) = up.readiness().await;
        if status.is_success() { Ok(()) } else { Err(said) }
    })
    .await;
    up.process.stop().await;
}

#[tokio::test]
async fn a_database_that_takes_no_writes_is_waited_for_in_peace() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("read-only", "before").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    installation.set_in_database("default_transaction_read_only = on").await;
    for number in 0..20 {
        sender.post(&join("read-only", &format!("user-{number}")).to_string()).await;
    }
    worker.logs("read-only transaction").await;
    let asked = || worker.log().matches(AWAY).count();
    let before = asked();
    // Asked once a second, however often it answers that it is there.
    sleep(Duration::from_secs(4)).await;
    let times = asked() - before;
    assert!((1..=5).contains(&times), "asked {times} times in 4 s");

    installation.set_in_database("default_transaction_read_only = off").await;
    applied(&installation, 21, LIMIT).await;
    no_event_was_to_blame(&installation, &[worker]).await;
}

#[tokio::test]
async fn a_database_that_falls_silent_is_given_up_and_asked_anew() {
    let mut installation = Installation::new().await;
    let proxy = Proxy::before(installation.database_address()).await;
    installation.reach_database_by(proxy.address);
    let ingress = installation.ingress().await;
    let worker = installation.worker("attendance").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("silent", "before").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    proxy.fall_silent();
    for number in 0..20 {
        sender.post(&join("silent", &format!("user-{number}")).to_string()).await;
    }
    eventually(LIMIT, || async {
        if worker.log().contains("the database has not answered within") { Ok(()) } else { Err("it waits".into()) }
    })
    .await;
    assert_eq!(intervals(&installation).await, 1);
    proxy.forward_again();
    applied(&installation, 21, LIMIT).await;
    no_event_was_to_blame(&installation, &[worker]).await;
}

#[tokio::test]
async fn a_connection_that_has_fallen_silent_keeps_no_place_in_the_pool() {
    let mut installation = Installation::new().await;
    let proxy = Proxy::before(installation.database_address()).await;
    installation.reach_database_by(proxy.address);
    // The only one: a worker that has lost all of its places would wait for ever.
    let db = store::connect(&installation.load_settings().database.url, 1).await.unwrap();
    assert!(store::is_reachable(&db).await);
    proxy.fall_silent();
    assert!(!store::is_reachable(&db).await);
    proxy.forward_again();
    eventually(Duration::from_secs(30), || async {
        if store::is_reachable(&db).await { Ok(()) } else { Err("there is no connection to be had".into()) }
    })
    .await;
}

/// What a setting of PostgreSQL's is in a transaction that would write.
async fn in_transaction(installation: &Installation, setting: &str) -> String {
    let db = store::connect(&installation.load_settings().database.url, 1).await.unwrap();
    let transaction = store::begin(&db).await.unwrap();
    let show = Statement::from_string(DbBackend::Postgres, format!("SHOW {setting}"));
    let value = transaction.query_one_raw(show).await.unwrap().unwrap().try_get_by_index(0).unwrap();
    transaction.rollback().await.unwrap();
    value
}

#[tokio::test]
async fn a_transaction_sees_and_keeps_what_its_rule_needs_whatever_the_database_has_as_a_default() {
    let installation = Installation::new().await;
    for (setting, default, then) in [
        ("transaction_isolation", "repeatable read", "read committed"),
        ("transaction_isolation", "serializable", "read committed"),
        ("synchronous_commit", "off", "on"),
        // Whoever waits for a standby goes on waiting for it.
        ("synchronous_commit", "remote_apply", "remote_apply"),
        ("synchronous_commit", "local", "local"),
    ] {
        let set = setting.replace("transaction_isolation", "default_transaction_isolation");
        installation.set_in_database(&format!("{set} = '{default}'")).await;
        assert_eq!(in_transaction(&installation, setting).await, then, "{setting} is {default} by default");
    }
}

/// Waits until so many of the programs' sessions wait for a lock.
async fn wait_for_locks(installation: &Installation, count: i64) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    eventually(LIMIT, || async {
        let row = installation.db.query_one_raw(Statement::from_string(DbBackend::Postgres, waiting)).await.unwrap();
        let found: i64 = row.unwrap().try_get_by_index(0).unwrap();
        if found == count { Ok(()) } else { Err(format!("{found} of {count} wait for a lock")) }
    })
    .await;
}

#[tokio::test]
async fn nobody_is_online_in_an_ended_session_where_transactions_are_repeatable_reads_by_default() {
    let installation = Installation::new().await;
    installation.set_in_database("default_transaction_isolation = 'repeatable read'").await;
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("class", "first").to_string()).await;
    applied(&installation, 1, LIMIT).await;

    // A join and then the end of the room wait for the session.
    let held = store::begin(&installation.db).await.unwrap();
    held.execute_unprepared("SELECT id FROM course_live_session FOR NO KEY UPDATE").await.unwrap();
    sender.post(&join("class", "second").to_string()).await;
    wait_for_locks(&installation, 1).await;
    let end = json!({"event": "room_finished", "id": "EV_end", "created_at": "1790000600",
                     "room": {"sid": "sid-of-class", "room_id": "class"}});
    sender.post(&end.to_string()).await;
    wait_for_locks(&installation, 2).await;
    held.rollback().await.unwrap();
    applied(&installation, 2, LIMIT).await;
    no_event_was_to_blame(&installation, &workers).await;

    let people = live_session_user::Entity::find().all(&installation.db).await.unwrap();
    let rows: Vec<_> = people.iter().map(|row| (row.user_id.as_str(), row.is_online, row.total_seconds)).collect();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|(_, online, seconds)| !online && *seconds == 600), "{rows:?}");
}

#[tokio::test]
async fn sessions_that_the_database_ends_cost_no_attempt() {
    let installation = Installation::new().await;
    installation.set_in_database("idle_session_timeout = '300ms'").await;
    let ingress = installation.ingress().await;
    let workers = installation.attendance_and_rooms(1).await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for round in 0..3 {
        sender.post(&join("idle", &format!("user-{round}")).to_string()).await;
        applied(&installation, round + 1, LIMIT).await;
        eventually(LIMIT, || async {
            let left = installation.database_sessions().await;
            if left == 0 { Ok(()) } else { Err(format!("{left} sessions are left")) }
        })
        .await;
    }
    installation.set_in_database("idle_session_timeout = 0").await;
    for round in 3..6 {
        sender.post(&join("ended", &format!("user-{round}")).to_string()).await;
        applied(&installation, round + 1, LIMIT).await;
        installation.end_database_sessions().await;
    }
    let load = Load::start(&installation, ingress.address);
    for _ in 0..5 {
        load.goes_on(20, LIMIT).await;
        installation.end_database_sessions().await;
    }
    let accepted = load.stop().await;
    all_applied(&installation, &accepted, LIMIT).await;
    no_event_was_to_blame(&installation, &workers).await;
}
