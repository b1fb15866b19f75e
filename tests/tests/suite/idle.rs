//! Connections that are silent: those between two webhooks stay, those that never say what they want go.

#![allow(clippy::print_stdout, reason = "the memory of so many connections is a figure to be read")]

use std::net::SocketAddr;
use std::time::Duration;

use chrono::Utc;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rollcall_tests::installation::{Ingress, Installation, Process, Server, memory_kib};
use rollcall_tests::raise_file_limit;
use rollcall_tests::wire::{Connection, request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

/// How long the ingress waits for the headers of a request that has begun.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

fn webhook(keys: &Server, room: usize) -> Vec<u8> {
    let body =
        format!(r#"{{"event":"room_started","id":"EV_{room}","room":{{"sid":"s-{room}","room_id":"r-{room}"}}}}"#);
    request(keys, &body, Utc::now().timestamp())
}

/// Opens so many connections and posts a webhook on each.
async fn open(address: SocketAddr, keys: &Server, count: usize) -> Vec<Connection> {
    let connections = stream::iter(0..count).map(|room| async move {
        let mut connection = Connection::open(address).await?;
        anyhow::ensure!(connection.ask(&webhook(keys, room)).await?, "not accepted");
        anyhow::Ok(connection)
    });
    connections.buffer_unordered(64).try_collect().await.unwrap()
}

/// Everybody posts once, is silent for so long, and posts again on the same connection.
async fn idle(count: usize, silence: Duration) {
    raise_file_limit();
    let installation = Installation::new().await;
    let Ingress { process, address, .. } = installation.ingress().await;
    let keys = installation.keys("main");
    let (empty, _) = memory_kib(&process);
    let mut connections = open(address, keys, count).await;
    sleep(silence).await;

    let (full, most) = memory_kib(&process);
    println!(
        "{count} connections, silent for {silence:?}: {} MiB resident, {} MiB at most, {:.1} KiB a connection",
        full / 1024,
        most / 1024,
        (full.saturating_sub(empty)) as f64 / count as f64
    );
    for (room, connection) in connections.iter_mut().enumerate() {
        let asked = connection.ask(&webhook(keys, room)).await;
        assert!(asked.unwrap_or_else(|error| panic!("connection {room}: {error}")));
    }
    drop(connections);
    process.stop().await;
}

#[tokio::test]
async fn a_thousand_silent_connections_outlast_the_header_time_out() {
    idle(1_000, HEADER_TIMEOUT + Duration::from_secs(5)).await;
}

#[tokio::test]
#[ignore = "takes ten minutes: make soak"]
async fn ten_thousand_silent_connections_stay_for_ten_minutes() {
    idle(10_000, Duration::from_mins(10)).await;
}

/// How many hundredths of a second of processor time a program has had.
fn processor_time(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn rollcall_up_is_ready_soon_and_costs_little_when_there_is_nothing_to_do() {
    const WATCHED: Duration = Duration::from_secs(5);
    rollcall_shared::tls::use_ring();
    let installation = Installation::on_files().await;
    let began = Instant::now();
    let Ingress { process, admin, .. } = installation.spawn("rollcall", &["up"]).listens().await;
    let ready = reqwest::get(format!("http://{admin}/readyz")).await.unwrap().text().await.unwrap();
    let took = began.elapsed();
    assert_eq!(ready, "ready\n");

    let before = processor_time(&process);
    sleep(WATCHED).await;
    let percent = (processor_time(&process) - before) as f64 / WATCHED.as_secs_f64();
    let (resident, _) = memory_kib(&process);
    println!("ready after {took:?}; idle: {} KiB resident, {percent:.1} % of a processor", resident);
    process.stop().await;
    assert!(resident < 40 * 1024, "{resident} KiB");
    assert!(percent < 5.0, "{percent} %");
    // A release build takes some 20 ms; the test looks every 50.
    assert!(took < Duration::from_secs(2), "{took:?}");
}

/// How long it takes until the ingress closes a connection whose peer sends `head` byte by byte and comes to no end.
async fn closed_after(mut connection: Connection, head: &str) -> Duration {
    let begun = Instant::now();
    let mut bytes = head.bytes().cycle();
    let mut answer = [0; 1024];
    while begun.elapsed() < 3 * HEADER_TIMEOUT {
        // When it is gone, reading says so.
        let _ = connection.0.write_all(&[bytes.next().unwrap()]).await;
        match timeout(Duration::from_millis(250), connection.0.read(&mut answer)).await {
            Err(_) => {}
            Ok(Ok(0) | Err(_)) => return begun.elapsed(),
            Ok(Ok(read)) => panic!("it was answered: {}", String::from_utf8_lossy(&answer[..read])),
        }
    }
    panic!("a slow client is still connected after {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_client_that_is_slow_with_its_headers_is_gone_after_ten_seconds() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let head = "POST /webhooks/plugnmeet HTTP/1.1\r\nHost: x\r\nX-Slow: ";
    let first = Connection::open(ingress.address).await.unwrap();
    let mut second = Connection::open(ingress.address).await.unwrap();
    assert!(second.ask(&webhook(installation.keys("main"), 1)).await.unwrap());

    let (first, second) = tokio::join!(closed_after(first, head), closed_after(second, head));
    for (which, took) in [("first", first), ("second", second)] {
        let range = Duration::from_secs(9)..Duration::from_secs(15);
        assert!(range.contains(&took), "the {which} request of a connection was given {took:?}");
    }
}
