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
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attendance::Attendance;
use crate::dead_letters::DeadLetters;
use crate::heartbeat::Heartbeat;
use crate::keeping::Keeping;
use crate::recordings::Recordings;
use crate::rooms::Rooms;
use crate::runner::{self, Limits};
use crate::stall::Stall;
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
    for obstacles in obstacles {
        obstacles.add(NO_DATABASE);
    }
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
    let keeping = Keeping::of(settings);
    oversee(AnyWorker::DeadLetters, settings, surroundings, stop, |surroundings, oversight, stop| {
        let Surroundings { queue, db, obstacles, .. } = surroundings;
        let Oversight { in_hand, paused } = oversight;
        DeadLetters { queue, db, keeping, in_hand, obstacles, paused }.run(stop)
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
    let (retry, limits) = (settings.retry(W::NAME).clone(), limits(W::NAME, settings));
    oversee(AnyWorker::Events(W::NAME), settings, surroundings, stop, |surroundings, oversight, stop| {
        runner::run(worker, surroundings, oversight, retry, limits, stop)
    })
    .await
}

/// Runs what takes from the queue until `stop`, and then for as long as `workers.drain_timeout` allows; with its heartbeat.
async fn oversee<F>(
    program: AnyWorker,
    settings: &Settings,
    surroundings: Surroundings,
    stop: CancellationToken,
    work: impl FnOnce(Surroundings, Oversight, CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), QueueError>> + Send + 'static,
{
    let (in_hand, gone, stop) = (InHand::default(), CancellationToken::new(), stop.child_token());
    let Surroundings { queue, db, obstacles, .. } = &surroundings;
    let (heartbeat, paused) = Heartbeat::of(program, db.clone(), in_hand.clone(), obstacles.clone());
    let patience = longest_hold(program, settings);
    let stall = Stall::of(program, queue.clone(), settings.clone(), in_hand.clone(), obstacles.clone(), patience);
    // One that shall rest takes nothing first.
    stop.run_until_cancelled(heartbeat.ask()).await;
    let beating = tokio::spawn(heartbeat.run(stall, gone.clone()));
    let running = tokio::spawn(work(surroundings, Oversight { in_hand, paused }, stop.clone()));
    info!(worker = %program, "started");
    until_ended(running, beating, stop, gone, settings.workers.drain_timeout).await
}

/// Waits for the work to end: by itself, or within `drain_timeout` of `stop`. Then the heartbeat is `gone`. Where that ends
/// first, nobody would hear of a pause any more: the work ends with it.
async fn until_ended(
    mut running: JoinHandle<Result<(), QueueError>>,
    mut beating: JoinHandle<()>,
    stop: CancellationToken,
    gone: CancellationToken,
    drain_timeout: Duration,
) -> anyhow::Result<()> {
    let (ended, beaten) = tokio::select! {
        ended = &mut running => (Some(ended), None),
        beaten = &mut beating => {
            stop.cancel();
            (timeout(drain_timeout, running).await.ok(), Some(beaten))
        }
        () = stop.cancelled() => (timeout(drain_timeout, running).await.ok(), None),
    };
    gone.cancel();
    let has_failed = beaten.is_some();
    let beaten = match beaten {
        Some(beaten) => beaten,
        None => beating.await,
    };
    match ended {
        Some(ended) => ended??,
        None => bail!("what was under way did not end within workers.drain_timeout; it will be delivered again"),
    }
    beaten.context("the heartbeat failed")?;
    if has_failed {
        bail!("the heartbeat has ended");
    }
    Ok(())
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

/// The longest that a worker may keep a message before it acknowledges it: what has the slots before it is waited for, then its
/// own turn, and then the database. Of a batch that failed, whose events are tried one by one, each is settled when it is its turn: the last
/// of them may wait for longer, which is not foreseen.
pub fn longest_hold(program: AnyWorker, settings: &Settings) -> Duration {
    let (rounds, round) = match program {
        AnyWorker::Events(WorkerName::Recordings) => {
            (limits(WorkerName::Recordings, settings).rounds(), settings.recordings.hold)
        }
        AnyWorker::Events(worker) => (limits(worker, settings).rounds(), store::TRANSACTION_LIMIT),
        AnyWorker::DeadLetters => (1, store::TRANSACTION_LIMIT),
    };
    rounds * round + runner::HOLD
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

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// Work that ends when it is told to.
    fn work(stop: &CancellationToken) -> JoinHandle<Result<(), QueueError>> {
        let stop = stop.clone();
        tokio::spawn(async move {
            stop.cancelled().await;
            Ok(())
        })
    }

    #[tokio::test]
    async fn a_worker_does_not_outlive_its_heartbeat() {
        for beating in [tokio::spawn(async { panic!("a fault") }), tokio::spawn(async {})] {
            let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
            let ended = timeout(LIMIT, until_ended(work(&stop), beating, stop, gone, LIMIT)).await;
            let error = ended.expect("it goes on, deaf to pauses").unwrap_err();
            assert!(error.to_string().contains("the heartbeat"), "{error:#}");
        }
    }

    #[tokio::test]
    async fn a_heartbeat_ends_after_its_worker() {
        let (stop, gone) = (CancellationToken::new(), CancellationToken::new());
        let beating = tokio::spawn(gone.clone().cancelled_owned());
        stop.cancel();
        timeout(LIMIT, until_ended(work(&stop), beating, stop, gone, LIMIT)).await.unwrap().unwrap();
    }
}
