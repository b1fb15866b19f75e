//! One worker from its settings to its end: what `rollcall-worker` runs, and `rollcall up` beside the others.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::Queue;
use rollcall_shared::store::{self, ErrorKind};
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::DatabaseConnection;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attendance::Attendance;
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
    worker: WorkerName,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let db = surroundings.db.clone();
    match worker {
        WorkerName::Attendance => run_worker(Attendance::new(settings, db), settings, surroundings, stop).await,
        WorkerName::Rooms => run_worker(Rooms::new(settings, db), settings, surroundings, stop).await,
        WorkerName::Recordings => run_worker(Recordings::new(settings, db)?, settings, surroundings, stop).await,
    }
}

/// Runs a worker of any kind, as [`run`] does.
///
/// # Errors
/// As [`run`].
pub async fn run_worker<W: Worker>(
    worker: W,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (retry, limits) = (settings.retry(W::NAME).clone(), limits(W::NAME, settings));
    let mut running = tokio::spawn(runner::run(worker, surroundings, retry, limits, stop.clone()));
    info!(worker = %W::NAME, "started");
    tokio::select! {
        ended = &mut running => return Ok(ended??),
        () = stop.cancelled() => {}
    }
    match timeout(settings.workers.drain_timeout, running).await {
        Ok(ended) => Ok(ended??),
        Err(_) => {
            bail!("what was under way did not end within workers.drain_timeout; it will be delivered again")
        }
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
pub fn connections(worker: WorkerName, settings: &Settings) -> u32 {
    const SPARE: usize = 3;
    u32::try_from(limits(worker, settings).concurrency + SPARE).unwrap_or(u32::MAX)
}
