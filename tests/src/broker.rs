//! What waits in which queue.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lapin::options::{BasicGetOptions, ExchangeDeleteOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rollcall_shared::config::SecretUrl;
use rollcall_shared::store;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, Statement};

use crate::eventually;
use crate::installation::Installation;

/// How many messages are ready in each queue of the installation that holds any. Those that a worker has are not told.
pub async fn depths(installation: &Installation) -> Result<BTreeMap<String, u32>, String> {
    if installation.is_on_files() {
        return depths_of_file(installation).await.map_err(|error| error.to_string());
    }
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default())
        .await
        .map_err(|e| e.to_string())?;
    let mut depths = BTreeMap::new();
    for queue in queues() {
        let channel = connection.create_channel().await.map_err(|error| error.to_string())?;
        let name = format!("{}.{queue}", installation.prefix);
        let passive = QueueDeclareOptions::durable().passive();
        if let Ok(declared) = channel.queue_declare(name.into(), passive, FieldTable::default()).await
            && declared.message_count() > 0
        {
            depths.insert(queue, declared.message_count());
        }
    }
    Ok(depths)
}

/// Every queue, by its name behind the prefix.
fn queues() -> Vec<String> {
    let mut queues = vec!["unrouted".to_owned()];
    for worker in ["attendance", "rooms", "recordings"] {
        queues.extend(
            ["", ".suspect", ".dead", ".retry.200ms", ".retry.1s", ".retry.2s"].map(|part| format!("{worker}{part}")),
        );
    }
    queues
}

/// All that is in any queue or the spool: where, and the event's id. On a broker it is gone then.
pub async fn take_all(installation: &Installation) -> Vec<(String, String)> {
    let mut all = spooled(installation).await.unwrap();
    if installation.is_on_files() {
        all.extend(messages(&path_of(&installation.broker_url)).await.unwrap());
        return all;
    }
    for queue in queues() {
        let id = |queued: Queued| queued.headers.get("rollcall-event-id").cloned().unwrap_or_default();
        all.extend(take(installation, &queue).await.into_iter().map(|queued| (queue.clone(), id(queued))));
    }
    all
}

/// What is in the ingress's spool: where, and the event's id.
pub async fn spooled(installation: &Installation) -> Result<Vec<(String, String)>, DbErr> {
    messages(&installation.load_settings().ingress.spool.path).await
}

/// Everything that is in a file of messages, if it is there.
async fn messages(path: &Path) -> Result<Vec<(String, String)>, DbErr> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = store::connect(&SecretUrl::parse(&format!("sqlite://{}", path.display())).unwrap(), 1).await?;
    let rows = file.query_all_raw(of_sqlite("SELECT queue, coalesce(event_id, '') FROM message")).await?;
    rows.iter().map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?))).collect()
}

fn path_of(url: &str) -> PathBuf {
    SecretUrl::parse(url).unwrap().sqlite_path().unwrap()
}

/// Waits until nothing waits but what is dead, and says how much that is, by worker.
pub async fn drained(installation: &Installation, limit: Duration) -> BTreeMap<String, u32> {
    eventually(limit, || async {
        let depths = depths(installation).await?;
        let waiting = depths.keys().any(|queue| !queue.ends_with(".dead"));
        if waiting { Err(format!("still waiting: {depths:?}")) } else { Ok(depths) }
    })
    .await
}

/// Waits until nothing is in any queue but so many dead letters of the attendance worker.
pub async fn only_dead(installation: &Installation, count: u32, limit: Duration) {
    let expected = BTreeMap::from([("attendance.dead".to_owned(), count)]);
    eventually(limit, || async {
        let depths = depths(installation).await?;
        if depths == expected { Ok(()) } else { Err(format!("{depths:?}")) }
    })
    .await;
}

/// Deletes an exchange, by its name behind the prefix, as somebody who clears up the wrong thing.
pub async fn delete_exchange(installation: &Installation, exchange: &str) {
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let exchange = format!("{}.{exchange}", installation.prefix);
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
}

/// The bodies and headers of what is dead for a worker; it stays where it is.
pub async fn dead(installation: &Installation, worker: &str) -> Vec<(String, BTreeMap<String, String>)> {
    if installation.is_on_files() {
        return dead_of_file(installation, worker).await.unwrap();
    }
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.{worker}.dead", installation.prefix);
    let mut dead = Vec::new();
    // Not acknowledged: given back when the connection ends.
    while let Some(got) = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.unwrap() {
        let headers = got.delivery.properties.headers().clone().unwrap_or_default();
        let headers = headers.inner().iter().map(|(name, value)| (name.to_string(), as_text(value)));
        dead.push((String::from_utf8_lossy(&got.delivery.data).into_owned(), headers.collect()));
    }
    dead
}

/// A message as it lies in a queue.
#[derive(Debug)]
pub struct Queued {
    /// Its id, which is ours.
    pub id: String,
    /// Its type: the event's name.
    pub event: String,
    /// Whether it is to outlive the broker.
    pub is_persistent: bool,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: Vec<u8>,
}

/// Takes all that is in a queue, by its name behind the prefix.
pub async fn take(installation: &Installation, queue: &str) -> Vec<Queued> {
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.{queue}", installation.prefix);
    let mut taken = Vec::new();
    let at_once = BasicGetOptions { no_ack: true };
    while let Some(got) = channel.basic_get(queue.as_str().into(), at_once).await.unwrap() {
        let properties = &got.delivery.properties;
        let headers = properties.headers().clone().unwrap_or_default();
        taken.push(Queued {
            id: properties.message_id().as_ref().map(ToString::to_string).unwrap_or_default(),
            event: properties.kind().as_ref().map(ToString::to_string).unwrap_or_default(),
            is_persistent: *properties.delivery_mode() == Some(2),
            headers: headers.inner().iter().map(|(name, value)| (name.to_string(), as_text(value))).collect(),
            body: got.delivery.data.clone(),
        });
    }
    taken
}

fn as_text(value: &lapin::types::AMQPValue) -> String {
    match value {
        lapin::types::AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        lapin::types::AMQPValue::LongLongInt(number) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// The queue's file, as somebody who looks into it.
async fn file(installation: &Installation) -> Result<DatabaseConnection, DbErr> {
    store::connect(&SecretUrl::parse(&installation.broker_url).unwrap(), 1).await
}

async fn depths_of_file(installation: &Installation) -> Result<BTreeMap<String, u32>, DbErr> {
    let path = SecretUrl::parse(&installation.broker_url).ok().and_then(|url| url.sqlite_path());
    if path.is_some_and(|path| !path.exists()) {
        // Whoever first puts something in makes it.
        return Ok(BTreeMap::new());
    }
    let file = file(installation).await?;
    let ready = "SELECT queue, count(*) FROM message WHERE seq NOT IN (SELECT seq FROM lease) GROUP BY queue";
    let rows = file.query_all_raw(of_sqlite(ready)).await?;
    rows.iter().map(|row| Ok((row.try_get_by_index(0)?, row.try_get_by_index(1)?))).collect()
}

async fn dead_of_file(
    installation: &Installation,
    worker: &str,
) -> Result<Vec<(String, BTreeMap<String, String>)>, DbErr> {
    let file = file(installation).await?;
    let columns =
        ["source", "attempt", "last_error", "first_failed_at", "last_failed_at", "dead_kind", "cause", "host"];
    let statement = format!(
        "SELECT CAST(body AS TEXT), {} FROM message WHERE queue = '{worker}.dead' ORDER BY seq",
        columns.map(|column| format!("CAST({column} AS TEXT)")).join(", ")
    );
    let mut dead = Vec::new();
    for row in file.query_all_raw(of_sqlite(&statement)).await? {
        let mut named = BTreeMap::new();
        for (index, column) in (1..).zip(columns) {
            let header = if column == "cause" { "dead-cause".to_owned() } else { column.replace('_', "-") };
            if let Some(value) = row.try_get_by_index(index)? {
                named.insert(format!("rollcall-{header}"), value);
            }
        }
        dead.push((row.try_get_by_index(0)?, named));
    }
    Ok(dead)
}

fn of_sqlite(statement: &str) -> Statement {
    Statement::from_string(DbBackend::Sqlite, statement)
}
