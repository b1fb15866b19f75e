//! One worker from its settings to its end: what `rollcall-worker` runs, and `rollcall up` beside the others.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::queue::{InHand, Queue, QueueError};
use rollcall_shared::store::{self, ErrorKind};
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::DatabaseConnection;
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attendance::Attendance;
use crate::dead_letters::DeadLetters;
use crate::heartbeat::Heartbeat;
use crate::recordings::Recordings;
use crate::rooms::Rooms;
use crate::runner::{self, Limits};
use crate::worker::Worker;

/// How long to wait before asking again for a database that was not there.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What a worker is not ready for.
const NO_DATABASE: &str = "the database is not there yet";

/// What a worker works on.
#[derive(Clone)]
pub struct Surroundings {
    /// Where its deliveries come from.
    pub queue: Queue,
    /// Where their effects go.
    pub db: DatabaseConnection,
    /// Where it says what keeps it from its work.
    pub obstacles: Obstacles,
    /// Shared by all workers of a process.
    pub alone: Alone,
}

/// What is known of a worker elsewhere, and what is wanted of it.
#[derive(Clone)]
pub(crate) struct Oversight {
    /// What it has taken and not settled: it counts there.
    pub(crate) in_hand: InHand,
    /// Whether it shall rest.
    pub(crate) paused: watch::Receiver<bool>,
}

/// Held while a suspect is in hand: if the process dies, no other one is there to be blamed for it.
pub type Alone = Arc<Mutex<()>>;

/// The database, as soon as it is there; until then it stands in everybody's way.
///
/// # Errors
/// It refuses us: waiting does not help.
pub async fn connect(url: &SecretUrl, connections: u32, obstacles: &[Obstacles]) -> anyhow::Result<DatabaseConnection> {
    obstacles.iter().for_each(|obstacles| obstacles.add(NO_DATABASE));
    let db = loop {
        match store::connect(url, connections).await {
            Ok(db) => break db,
            Err(error) if store::kind_of(&error) == ErrorKind::Unreachable => {
                warn!(%url, %error, "the database is not there yet; will try again");
                sleep(ASK_AGAIN).await;
            }
            Err(error) => bail!("the database at {url} cannot be used: {error}"),
        }
    };
    obstacles.iter().for_each(|obstacles| obstacles.remove(NO_DATABASE));
    Ok(db)
}

/// Runs a worker until `stop`, and then for as long as `workers.drain_timeout` allows.
///
/// # Errors
/// The broker refuses us, a setting cannot be used, or what was under way did not end in time.
pub async fn run(
    program: AnyWorker,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let db = surroundings.db.clone();
    let worker = match program {
        AnyWorker::Events(worker) => worker,
        AnyWorker::DeadLetters => return run_dead_letters(settings, surroundings, stop).await,
    };
    match worker {
        WorkerName::Attendance => run_worker(Attendance::new(settings, db), settings, surroundings, stop).await,
        WorkerName::Rooms => run_worker(Rooms::new(settings, db), settings, surroundings, stop).await,
        WorkerName::Recordings => run_worker(Recordings::new(settings, db)?, settings, surroundings, stop).await,
    }
}

async fn run_dead_letters(
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (keep, stopped) = (settings.dead_letters.keep, stop.clone());
    oversee(AnyWorker::DeadLetters, settings, surroundings, stop, |surroundings, oversight| {
        let Surroundings { queue, db, obstacles, .. } = surroundings;
        let Oversight { in_hand, paused } = oversight;
        DeadLetters { queue, db, keep, in_hand, obstacles, paused }.run(stopped)
    })
    .await
}

/// Runs a worker of any kind of event, as [`run`] does.
///
/// # Errors
/// As [`run`].
pub async fn run_worker<W: Worker>(
    worker: W,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (retry, limits, stopped) = (settings.retry(W::NAME).clone(), limits(W::NAME, settings), stop.clone());
    oversee(AnyWorker::Events(W::NAME), settings, surroundings, stop, |surroundings, oversight| {
        runner::run(worker, surroundings, oversight, retry, limits, stopped)
    })
    .await
}

/// Runs what takes from the queue until `stop`, and then for as long as `workers.drain_timeout` allows; with its heartbeat.
async fn oversee<F>(
    program: AnyWorker,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
    work: impl FnOnce(Surroundings, Oversight) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), QueueError>> + Send + 'static,
{
    let (in_hand, gone) = (InHand::default(), CancellationToken::new());
    let Surroundings { db, obstacles, .. } = &surroundings;
    let (heartbeat, paused) = Heartbeat::of(program, db.clone(), in_hand.clone(), obstacles.clone());
    // One that shall rest takes nothing first.
    heartbeat.ask().await;
    let beating = tokio::spawn(heartbeat.run(gone.clone()));
    let mut running = tokio::spawn(work(surroundings, Oversight { in_hand, paused }));
    info!(worker = %program, "started");
    let ended = tokio::select! {
        ended = &mut running => Some(ended),
        () = stop.cancelled() => timeout(settings.workers.drain_timeout, running).await.ok(),
    };
    gone.cancel();
    beating.await.context("the heartbeat failed")?;
    match ended {
        Some(ended) => Ok(ended??),
        None => bail!("what was under way did not end within workers.drain_timeout; it will be delivered again"),
    }
}

/// A recording is a job of its own; the others take many events in one transaction, one transaction at a time.
fn limits(worker: WorkerName, settings: &Settings) -> Limits {
    let batch_wait = settings.workers.batch_wait;
    match worker {
        WorkerName::Attendance | WorkerName::Rooms => {
            Limits { batch_size: settings.workers.batch_size, batch_wait, concurrency: 1 }
        }
        WorkerName::Recordings => Limits { batch_size: 1, batch_wait, concurrency: settings.recordings.concurrency },
    }
}

/// The longest that a worker may keep a message before it acknowledges it: a job is waited for, and then the database.
pub fn longest_hold(settings: &Settings) -> Duration {
    settings.recordings.hold + runner::HOLD
}

/// How many connections to the database a worker uses at most: one for each batch at work, and some for the rest.
pub fn connections(program: AnyWorker, settings: &Settings) -> u32 {
    const SPARE: usize = 3;
    let batches = match program {
        AnyWorker::Events(worker) => limits(worker, settings).concurrency,
        AnyWorker::DeadLetters => 1,
    };
    u32::try_from(batches + SPARE).unwrap_or(u32::MAX)
}
