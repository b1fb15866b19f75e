//! One look at everything. What does not answer is told as such, and hides nothing else.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use rollcall_shared::config::Settings;
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::oversight::{self, InProgress, Unresolved};
use rollcall_shared::queue::management::{Management, QueueState};
use rollcall_shared::queue::{Depth, Depths, Queue};
use rollcall_shared::store::entity::worker_pause::Model as PauseRow;
use rollcall_shared::store::entity::worker_process::Model as ProcessRow;
use sea_orm::{DatabaseConnection, DbErr};
use serde::Serialize;
use tokio::time::timeout;

use super::ingress::Ingress;
use super::is_alive;
use crate::address::reachable;
use crate::migrate;

/// How long the queue and the database may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a process is shown that was killed.
const REMEMBERED: TimeDelta = TimeDelta::minutes(10);

/// Everything, at one time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Look {
    pub(super) at: DateTime<Utc>,
    /// What needs a person.
    pub(super) attention: Vec<String>,
    pub(super) workers: Vec<Worker>,
    /// Events that no binding wanted; `None` where the queue does not tell.
    pub(super) unrouted: Option<u64>,
    pub(super) ingresses: Vec<Ingress>,
    pub(super) recordings: Option<Recordings>,
    /// Dead letters that died since this time yesterday, and are dead still.
    pub(super) died_since_yesterday: Option<u64>,
    /// What does not answer, and why.
    pub(super) unreachable: Vec<String>,
}

/// A worker and its queues.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Worker {
    pub(super) worker: String,
    #[serde(flatten)]
    pub(super) waits: Option<Waits>,
    /// Deliveries that its processes have: as the broker tells, or as they last told themselves.
    pub(super) in_flight: u64,
    /// Events a second that come in.
    pub(super) rate_in: Option<f64>,
    /// Events a second that are settled, as its processes last told.
    pub(super) rate_out: f64,
    /// When the oldest event that waits, or that a process has, was taken in.
    pub(super) oldest_received_at: Option<DateTime<Utc>>,
    /// Dead letters in the database.
    pub(super) dead: u64,
    /// Dead letters that were sent back, and are not applied yet.
    pub(super) replaying: u64,
    pub(super) paused: Option<Paused>,
    pub(super) processes: Vec<Process>,
}

/// What waits in a worker's queues.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Waits {
    pub(super) waiting: u64,
    pub(super) retrying: u64,
    pub(super) suspects: u64,
    /// Dead, and not in the database yet.
    pub(super) dead_in_queue: u64,
    pub(super) consumers: Option<u64>,
}

/// That a worker rests.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Paused {
    pub(super) by: String,
    pub(super) at: DateTime<Utc>,
    pub(super) reason: Option<String>,
}

/// A worker's process.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Process {
    pub(super) host: String,
    pub(super) pid: i64,
    pub(super) version: String,
    pub(super) state: String,
    /// Whether it has told of late.
    pub(super) is_alive: bool,
    pub(super) started_at: DateTime<Utc>,
    pub(super) seen_at: DateTime<Utc>,
    pub(super) in_flight: i64,
    pub(super) rate: f64,
    pub(super) settled: i64,
}

/// Recordings on their way.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Recordings {
    /// Those that somebody fetches now.
    pub(super) in_progress: Vec<Recording>,
    /// Those that wait besides: for the server to be done with them, or for their next try.
    pub(super) waiting: u64,
}

/// A recording that somebody fetches.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Recording {
    pub(super) source: String,
    pub(super) record_id: String,
    pub(super) title: Option<String>,
    /// When it was first heard of.
    pub(super) since: DateTime<Utc>,
    /// What went wrong the last time.
    pub(super) error: Option<String>,
}

/// Whom to ask.
pub(super) struct Sources {
    settings: Settings,
    queue: Queue,
    management: Option<Management>,
    /// Once it was reached.
    db: Option<DatabaseConnection>,
    http: reqwest::Client,
    ingresses: Vec<String>,
}

/// What the database tells.
struct Told {
    processes: Vec<ProcessRow>,
    pauses: Vec<PauseRow>,
    unresolved: Vec<Unresolved>,
    recordings: Recordings,
    died_since_yesterday: u64,
}

impl Sources {
    /// Of these settings, with the ingresses at these addresses.
    pub(super) fn of(settings: Settings, mut ingresses: Vec<String>) -> Result<Self> {
        if ingresses.is_empty() {
            ingresses.push(reachable(settings.ingress.admin_address).to_string());
        }
        let queue = Queue::open(&settings.queue, "rollcall status")?;
        let management = Management::new(&settings.queue)?;
        let http = reqwest::Client::builder().build().context("cannot set up the HTTP client")?;
        Ok(Self { settings, queue, management, db: None, http, ingresses })
    }

    /// Looks at everything; what came in since the look `before` gives the rates.
    pub(super) async fn look(&mut self, before: Option<&Look>) -> Look {
        let mut unreachable = Vec::new();
        let told = told_or(self.told().await, "the database", &mut unreachable);
        let depths = told_or(self.depths().await, "the queue", &mut unreachable);
        let states = match &self.management {
            Some(management) => told_or(managed(management).await, "the management plugin", &mut unreachable),
            None => None,
        };
        let ingresses = join_all(self.ingresses.iter().map(|address| Ingress::ask(&self.http, address))).await;
        let at = Utc::now();
        let worker = |name: AnyWorker| worker(name, at, told.as_ref(), depths.as_ref());
        let mut look = Look {
            at,
            attention: Vec::new(),
            workers: AnyWorker::ALL.into_iter().map(worker).collect(),
            unrouted: depths.as_ref().map(|depths| depths.unrouted),
            ingresses,
            died_since_yesterday: told.as_ref().map(|told| told.died_since_yesterday),
            recordings: told.map(|told| told.recordings),
            unreachable,
        };
        if let Some(before) = before {
            look.tell_rates(before);
        }
        if let Some(states) = states {
            look.hear(&self.settings.queue.prefix, &states);
        }
        look
    }

    async fn depths(&self) -> Result<Depths> {
        Ok(timeout(LIMIT, self.queue.depths(&self.settings)).await.context("it does not answer")??)
    }

    async fn told(&mut self) -> Result<Told> {
        let asked = timeout(LIMIT, async {
            let db = match &self.db {
                Some(db) => db,
                None => self.db.insert(migrate::migrated(&self.settings.database.url, 1).await?),
            };
            Ok::<_, anyhow::Error>(told(db).await?)
        });
        asked.await.context("it does not answer")?
    }
}

async fn managed(management: &Management) -> Result<BTreeMap<String, QueueState>> {
    Ok(timeout(LIMIT, management.queues()).await.context("it does not answer")??)
}

async fn told(db: &DatabaseConnection) -> Result<Told, DbErr> {
    let in_progress = oversight::recordings_in_progress(db).await?;
    let processing = oversight::recordings_waiting(db).await?;
    Ok(Told {
        processes: oversight::processes(db).await?,
        pauses: oversight::pauses(db).await?,
        unresolved: oversight::unresolved(db).await?,
        died_since_yesterday: oversight::died_since(db, Utc::now() - TimeDelta::days(1)).await?,
        recordings: Recordings {
            waiting: processing.saturating_sub(in_progress.len() as u64),
            in_progress: in_progress.into_iter().map(recording).collect(),
        },
    })
}

fn recording(InProgress { recording, .. }: InProgress) -> Recording {
    Recording {
        source: recording.source,
        record_id: recording.record_id,
        title: recording.title,
        since: recording.created_at,
        error: recording.error,
    }
}

fn told_or<T>(told: Result<T>, who: &str, unreachable: &mut Vec<String>) -> Option<T> {
    told.map_err(|error| unreachable.push(format!("{who}: {error:#}"))).ok()
}

fn worker(name: AnyWorker, at: DateTime<Utc>, told: Option<&Told>, depths: Option<&Depths>) -> Worker {
    let depth = match name {
        AnyWorker::Events(worker) => {
            depths.and_then(|depths| depths.workers.iter().find(|depth| depth.worker == worker)).copied()
        }
        AnyWorker::DeadLetters => depths.map(of_the_dead),
    };
    let processes = told.map(|told| processes(name, at, told)).unwrap_or_default();
    let alive = || processes.iter().filter(|process| process.is_alive);
    let in_hand = told.and_then(|told| oldest_in_hand(name, at, told));
    let in_state = |state: &str| {
        let ours = |unresolved: &&Unresolved| unresolved.worker == name.as_str() && unresolved.state == state;
        let found = told.and_then(|told| told.unresolved.iter().find(ours));
        found.and_then(|found| found.count.try_into().ok()).unwrap_or_default()
    };
    Worker {
        worker: name.as_str().to_owned(),
        waits: depth.map(waits),
        in_flight: alive().filter_map(|process| u64::try_from(process.in_flight).ok()).sum(),
        rate_in: None,
        rate_out: alive().map(|process| process.rate).sum(),
        oldest_received_at: [depth.and_then(|depth| depth.oldest), in_hand].into_iter().flatten().min(),
        dead: in_state("dead"),
        replaying: in_state("replaying"),
        paused: told.and_then(|told| paused(name, told)),
        processes,
    }
}

/// What waits for the worker of the dead is what died and is not in the database yet.
fn of_the_dead(depths: &Depths) -> Depth {
    let waiting = depths.workers.iter().map(|depth| depth.dead).sum();
    let worker = WorkerName::Attendance;
    Depth { worker, waiting, retrying: 0, suspects: 0, dead: 0, consumers: None, oldest: None }
}

fn waits(depth: Depth) -> Waits {
    Waits {
        waiting: depth.waiting,
        retrying: depth.retrying,
        suspects: depth.suspects,
        dead_in_queue: depth.dead,
        consumers: depth.consumers,
    }
}

fn paused(name: AnyWorker, told: &Told) -> Option<Paused> {
    let pause = told.pauses.iter().find(|pause| pause.worker == name.as_str())?;
    Some(Paused { by: pause.paused_by.clone(), at: pause.paused_at, reason: pause.reason.clone() })
}

fn processes(name: AnyWorker, at: DateTime<Utc>, told: &Told) -> Vec<Process> {
    let ours = told.processes.iter().filter(|row| row.worker == name.as_str() && at - row.seen_at < REMEMBERED);
    let process = |row: &ProcessRow| Process {
        host: row.host.clone(),
        pid: row.pid,
        version: row.version.clone(),
        state: row.state.clone(),
        is_alive: is_alive(row, at),
        started_at: row.started_at,
        seen_at: row.seen_at,
        in_flight: row.in_flight,
        rate: row.rate,
        settled: row.settled,
    };
    ours.map(process).collect()
}

fn oldest_in_hand(name: AnyWorker, at: DateTime<Utc>, told: &Told) -> Option<DateTime<Utc>> {
    let ours = told.processes.iter().filter(|row| row.worker == name.as_str() && is_alive(row, at));
    ours.filter_map(|row| row.oldest_received_at).min()
}

impl Look {
    /// The management plugin knows better: it sees every ingress, and every process.
    fn hear(&mut self, prefix: &str, states: &BTreeMap<String, QueueState>) {
        for worker in &mut self.workers {
            let state = |part: &str| states.get(&format!("{prefix}.{}{part}", worker.worker));
            let Some(own) = state("") else { continue };
            let in_hand = |state: &QueueState| state.unacknowledged.unwrap_or_default();
            worker.in_flight = in_hand(own) + state(".suspect").map_or(0, in_hand);
            worker.rate_in = Some(own.publish_rate);
        }
    }

    /// How fast events came in since `before`: what the ingresses have accepted. One that started since begins at none.
    fn tell_rates(&mut self, before: &Self) {
        let seconds = (self.at - before.at).as_seconds_f64();
        for worker in &mut self.workers {
            let accepted = |look: &[Ingress]| {
                let of_ingress = |ingress: &Ingress| {
                    let accepted = &ingress.shown.as_ref()?.accepted;
                    Some(accepted.get(&worker.worker).copied().unwrap_or_default())
                };
                look.iter().map(of_ingress).sum::<Option<u64>>()
            };
            let is_of_events = worker.worker.parse::<WorkerName>().is_ok();
            let both = accepted(&self.ingresses).zip(accepted(&before.ingresses)).filter(|_| is_of_events);
            worker.rate_in =
                both.filter(|_| seconds > 0.0).map(|(now, then)| now.saturating_sub(then) as f64 / seconds);
        }
    }
}
