//! The embedded queue, beside a bare loop that inserts the same bodies into a SQLite file with as many to a commit; and
//! everything, from the post to the row, in one process on the files of one machine.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use chrono::Utc;
use rollcall_shared::queue::{Message, Publisher, Queue};
use rollcall_shared::telemetry::admin::Admin;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Plan, processor_micros};
use crate::installation::{Installation, metric};
use crate::joins::{CapturedJoin, applied};
use crate::wire::{Connection, request};

/// What (f) is to reach of (e), and (g).
const TARGET_OF_PUBLISHING: f64 = 0.5;
const TARGET_OF_EVERYTHING: f64 = 0.2;
/// How many events go from the post to the row, and into how many rooms.
const EVENTS: usize = 60_000;
const ROOMS: usize = 600;
/// How long those may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// The most rows in one statement of the bare loop.
const ROWS: usize = 64;
/// What the queue counts its commits by.
const BATCHES: &str = "rollcall_queue_file_batch_rows";

/// What was written, and with how much in a commit.
struct Written {
    a_second: f64,
    rows_a_commit: f64,
}

/// What came through.
struct Through {
    posted_a_second: f64,
    a_second: f64,
    cpu_micros: f64,
}

/// Runs the three and prints them.
///
/// # Errors
/// Something does not run, or an answer was not 200.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let installation = Installation::on_files().await;
    let published = publish(&installation, plan).await?;
    let rows = published.rows_a_commit.round().max(1.0) as usize;
    let bare = insert(&installation.directory.join("bare.db"), rows, plan).await?;
    drop(std::fs::remove_dir_all(&installation.directory));
    let through = from_post_to_row(&Installation::on_files().await, plan).await?;
    report(&bare, &published, &through, plan)
}

/// (f): many publishers, each with one message after the other, and nobody who takes them.
async fn publish(installation: &Installation, plan: Plan) -> anyhow::Result<Written> {
    let admin = Admin::bind((Ipv4Addr::LOCALHOST, 0).into()).await?;
    let (address, stop) = (admin.local_addr()?, CancellationToken::new());
    tokio::spawn(admin.serve(|| Ok(String::new()), stop.clone()));
    let settings = installation.load_settings();
    let publisher = Queue::open(&settings.queue, "rollcall-bench")?.publisher(&settings.ingress).await?;
    let (join, count) = (CapturedJoin::load(), Arc::new(AtomicUsize::new(0)));
    let mut publishers = JoinSet::new();
    for number in 0..plan.connections {
        publishers.spawn(publish_on(publisher.clone(), join.clone(), number, count.clone(), stop.clone()));
    }
    tokio::time::sleep(plan.warm_up).await;
    let (begun, before) = (Instant::now(), count.load(Ordering::Relaxed));
    let batches = Batches::of(address).await;
    tokio::time::sleep(plan.measured).await;
    let a_second = (count.load(Ordering::Relaxed) - before) as f64 / begun.elapsed().as_secs_f64();
    let rows_a_commit = Batches::of(address).await.average_since(&batches);
    stop.cancel();
    while let Some(ended) = publishers.join_next().await {
        ended??;
    }
    publisher.close().await;
    Ok(Written { a_second, rows_a_commit })
}

async fn publish_on(
    publisher: Publisher,
    join: CapturedJoin,
    number: usize,
    count: Arc<AtomicUsize>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let body = Bytes::from(join.of(&format!("room-{number}"), &format!("person-{number}")));
    while !stop.is_cancelled() {
        let message = Message::new("main", "participant_joined", body.clone());
        publisher.publish(message, PATIENCE).await?;
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The histogram of the rows in a commit.
struct Batches {
    rows: f64,
    commits: f64,
}

impl Batches {
    async fn of(admin: SocketAddr) -> Self {
        let part = async |part| metric(admin, &format!("{BATCHES}_{part}")).await.unwrap_or_default();
        Self { rows: part("sum").await, commits: part("count").await }
    }

    fn average_since(&self, before: &Self) -> f64 {
        (self.rows - before.rows) / (self.commits - before.commits)
    }
}

/// (e): inserts bodies into a file as the queue does, with so many to a commit, and does nothing else.
async fn insert(path: &Path, rows: usize, plan: Plan) -> anyhow::Result<Written> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .disable_statement_logging();
    let mut file = options.connect().await?;
    sqlx::query("CREATE TABLE message (seq INTEGER PRIMARY KEY, body BLOB NOT NULL)").execute(&mut file).await?;
    let body = CapturedJoin::load().of("room-0", "person-0");
    let (mut inserted, mut begun) = (0, Instant::now());
    let warm = begun + plan.warm_up;
    let mut is_warm = false;
    while !is_warm || begun.elapsed() < plan.measured {
        if !is_warm && Instant::now() >= warm {
            (is_warm, inserted, begun) = (true, 0, Instant::now());
        }
        commit(&mut file, &body, rows).await?;
        inserted += rows;
    }
    let a_second = inserted as f64 / begun.elapsed().as_secs_f64();
    file.close().await?;
    Ok(Written { a_second, rows_a_commit: rows as f64 })
}

async fn commit(file: &mut SqliteConnection, body: &str, rows: usize) -> sqlx::Result<()> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *file).await?;
    let mut left = rows;
    while left > 0 {
        // Few lengths: statements are kept prepared.
        let these = if left >= ROWS { ROWS } else { 1 };
        let statement = format!("INSERT INTO message (body) VALUES {}", vec!["(?)"; these].join(", "));
        let mut query = sqlx::query(AssertSqlSafe(statement));
        for _ in 0..these {
            query = query.bind(body.as_bytes());
        }
        query.execute(&mut *file).await?;
        left -= these;
    }
    sqlx::query("COMMIT").execute(file).await.map(|_| ())
}

/// (g): as many events as are to come through, posted as fast as they are taken.
async fn from_post_to_row(installation: &Installation, plan: Plan) -> anyhow::Result<Through> {
    let keys = installation.keys("main");
    let (join, now) = (CapturedJoin::load(), Utc::now().timestamp());
    let event = |number| join.of(&format!("room-{}", number % ROOMS), &format!("person-{number}"));
    let requests: Arc<[Vec<u8>]> = (0..EVENTS).map(|number| request(keys, &event(number), now)).collect();
    let up = installation.up().await;
    let (begun, cpu) = (Instant::now(), processor_micros(up.process.id())?);
    let mut connections = JoinSet::new();
    for number in 0..plan.connections {
        connections.spawn(post(up.address, requests.clone(), number, plan.connections));
    }
    while let Some(ended) = connections.join_next().await {
        ended??;
    }
    let posted = begun.elapsed();
    applied(installation, EVENTS as u64, PATIENCE).await;
    let through = begun.elapsed();
    let cpu = processor_micros(up.process.id())? - cpu;
    up.process.stop().await;
    let a_second = |time: Duration| EVENTS as f64 / time.as_secs_f64();
    Ok(Through {
        posted_a_second: a_second(posted),
        a_second: a_second(through),
        cpu_micros: cpu as f64 / EVENTS as f64,
    })
}

async fn post(address: SocketAddr, requests: Arc<[Vec<u8>]>, first: usize, step: usize) -> anyhow::Result<()> {
    let mut connection = Connection::open(address).await.context("rollcall up does not listen")?;
    for request in requests.iter().skip(first).step_by(step) {
        ensure!(connection.ask(request).await?, "an answer was not 200");
    }
    Ok(())
}

fn report(bare: &Written, published: &Written, through: &Through, plan: Plan) -> anyhow::Result<()> {
    let mut text = format!(
        "The embedded queue: a captured join of {} bytes, {} publishers or connections at once, {} s each after {} s of warm-up;\n\
         (g) is {EVENTS} joins of as many people, until the last is in the tables.\n\n",
        CapturedJoin::load().of("room-0", "person-0").len(),
        plan.connections,
        plan.measured.as_secs(),
        plan.warm_up.as_secs(),
    );
    let written = |name, written: &Written| {
        format!("{name:<34} {:>9.0} events/s, {:.0} to a commit\n", written.a_second, written.rows_a_commit)
    };
    text += &written("(e) bare SQLite inserts", bare);
    text += &written("(f) the embedded queue", published);
    writeln!(
        text,
        "{:<34} {:>9.0} events/s, posted at {:.0}, CPU {:.0} µs an event",
        "(g) rollcall up, from post to row", through.a_second, through.posted_a_second, through.cpu_micros
    )?;
    for (name, of, target) in
        [("(f)", published.a_second, TARGET_OF_PUBLISHING), ("(g)", through.a_second, TARGET_OF_EVERYTHING)]
    {
        let ratio = of / bare.a_second;
        let verdict = if ratio >= target { "reached" } else { "missed" };
        writeln!(text, "{name} is {ratio:.2} of (e): the target of {target} is {verdict}.")?;
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
