//! How everything is at one time. What does not answer is named, and hides nothing else; what nobody tells is not made up.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::State;
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::oversight::{self, Unresolved};
use rollcall_shared::queue::management::{Management, QueueState};
use rollcall_shared::queue::{Depth, Depths, Queue};
use rollcall_shared::store::entity::live_session_recording::Model as RecordingRow;
use rollcall_shared::store::entity::worker_pause::Model as PauseRow;
use sea_orm::{DatabaseConnection, DbErr};
use serde::Serialize;
use tokio::time::timeout;

use super::ingress::Ingress;
use crate::address::reachable;
use crate::{causes, migrate};

/// How long the queue and the database may take.
const LIMIT: Duration = Duration::from_secs(10);
/// For how many seconds a process is shown that was killed.
const REMEMBERED: f64 = 600.0;

/// Everything, at one time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Snapshot {
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
    /// Deliveries that its processes have: as the broker tells, or as they last reported themselves.
    pub(super) in_flight: Option<u64>,
    /// Events a second that come in.
    pub(super) rate_in: Option<f64>,
    /// Events a second that are settled, as its processes last reported.
    pub(super) rate_out: Option<f64>,
    /// When the oldest event that waits, or that a process has, was taken in.
    pub(super) oldest_received_at: Option<DateTime<Utc>>,
    /// Dead letters in the database.
    pub(super) dead: Option<u64>,
    /// Dead letters that were sent back, and are not applied yet.
    pub(super) replaying: Option<u64>,
    pub(super) paused: Option<Paused>,
    /// `None` where the database does not tell.
    pub(super) processes: Option<Vec<Process>>,
}

/// What waits in a worker's queues.
#[derive(Debug, Clone, Copy, Default, Serialize)]
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
    /// Whether it has reported of late.
    pub(super) is_alive: bool,
    /// For how long it has run.
    pub(super) running_seconds: f64,
    /// How long ago it last reported.
    pub(super) silent_seconds: f64,
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

/// What is in the database.
struct Stored {
    processes: Vec<oversight::Process>,
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

    /// How everything is now; what came in since the snapshot `before` gives the rates.
    pub(super) async fn snapshot(&mut self, before: Option<&Snapshot>) -> Snapshot {
        let mut unreachable = Vec::new();
        let stored = or_unreachable(self.stored().await, "the database", &mut unreachable);
        let depths = or_unreachable(self.depths().await, "the queue", &mut unreachable);
        let states = match &self.management {
            Some(management) => or_unreachable(managed(management).await, "the management plugin", &mut unreachable),
            None => None,
        };
        let ingresses = join_all(self.ingresses.iter().map(|address| Ingress::ask(&self.http, address))).await;
        let worker = |name: AnyWorker| worker(name, stored.as_ref(), depths.as_ref());
        let mut snapshot = Snapshot {
            at: Utc::now(),
            attention: Vec::new(),
            workers: AnyWorker::ALL.into_iter().map(worker).collect(),
            unrouted: depths.as_ref().map(|depths| depths.unrouted),
            ingresses,
            died_since_yesterday: stored.as_ref().map(|stored| stored.died_since_yesterday),
            recordings: stored.map(|stored| stored.recordings),
            unreachable,
        };
        if let Some(before) = before {
            snapshot.add_rates(before);
        }
        if let Some(states) = states {
            snapshot.add_states(&self.settings.queue.prefix, &states);
        }
        snapshot
    }

    async fn depths(&self) -> Result<Depths> {
        // Whoever makes the file owns it, and that is to be Rollcall's user.
        if let Some(path) = self.settings.queue.url.sqlite_path()
            && !path.exists()
        {
            let path = std::path::absolute(&path).unwrap_or(path);
            bail!(
                "the file {} is not there yet: rollcall up makes it; if Rollcall runs already, run this in its folder",
                path.display()
            );
        }
        Ok(timeout(LIMIT, self.queue.depths(&self.settings)).await.context("it does not answer")??)
    }

    async fn stored(&mut self) -> Result<Stored> {
        let asked = timeout(LIMIT, async {
            let db = match &self.db {
                Some(db) => db,
                None => self.db.insert(migrate::migrated(&self.settings.database.url, 1).await?),
            };
            Ok::<_, anyhow::Error>(stored(db).await?)
        });
        asked.await.context("it does not answer")?
    }
}

async fn managed(management: &Management) -> Result<BTreeMap<String, QueueState>> {
    Ok(timeout(LIMIT, management.queues()).await.context("it does not answer")??)
}

async fn stored(db: &DatabaseConnection) -> Result<Stored, DbErr> {
    let in_progress = oversight::recordings_in_progress(db).await?;
    let processing = oversight::recordings_waiting(db).await?;
    Ok(Stored {
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

fn recording(row: RecordingRow) -> Recording {
    let RecordingRow { source, record_id, title, created_at, error, .. } = row;
    Recording { source, record_id, title, since: created_at, error }
}

fn or_unreachable<T>(answer: Result<T>, who: &str, unreachable: &mut Vec<String>) -> Option<T> {
    answer.map_err(|error| unreachable.push(format!("{who}: {}", causes(error)))).ok()
}

fn worker(name: AnyWorker, stored: Option<&Stored>, depths: Option<&Depths>) -> Worker {
    let processes = stored.map(|stored| processes(name, stored));
    let alive = || processes.as_ref().map(|processes| processes.iter().filter(|process| process.is_alive));
    let depth = depths.and_then(|depths| depths.workers.iter().find(|depth| name == AnyWorker::Events(depth.worker)));
    let in_hand = stored.and_then(|stored| oldest_in_hand(name, stored));
    Worker {
        worker: name.as_str().to_owned(),
        waits: match name {
            AnyWorker::Events(_) => depth.map(waits),
            AnyWorker::DeadLetters => depths.map(waits_of_the_dead),
        },
        in_flight: alive().map(|alive| alive.filter_map(|process| u64::try_from(process.in_flight).ok()).sum()),
        rate_in: None,
        // The sum of none is -0.0.
        rate_out: alive().map(|alive| alive.map(|process| process.rate).fold(0.0, |sum, rate| sum + rate)),
        oldest_received_at: [depth.and_then(|depth| depth.oldest), in_hand].into_iter().flatten().min(),
        dead: stored.map(|stored| in_state(State::Dead, name, stored)),
        replaying: stored.map(|stored| in_state(State::Replaying, name, stored)),
        paused: stored.and_then(|stored| paused(name, stored)),
        processes,
    }
}

fn in_state(state: State, name: AnyWorker, stored: &Stored) -> u64 {
    let ours = |row: &&Unresolved| row.worker == name.as_str() && row.state == state.as_str();
    stored.unresolved.iter().find(ours).and_then(|row| row.count.try_into().ok()).unwrap_or_default()
}

fn waits(depth: &Depth) -> Waits {
    Waits {
        waiting: depth.waiting,
        retrying: depth.retrying,
        suspects: depth.suspects,
        dead_in_queue: depth.dead,
        consumers: depth.consumers,
    }
}

/// What waits for the worker of the dead is what died and is not in the database yet.
fn waits_of_the_dead(depths: &Depths) -> Waits {
    Waits { waiting: depths.workers.iter().map(|depth| depth.dead).sum(), ..Waits::default() }
}

fn paused(name: AnyWorker, stored: &Stored) -> Option<Paused> {
    let pause = stored.pauses.iter().find(|pause| pause.worker == name.as_str())?;
    Some(Paused { by: pause.paused_by.clone(), at: pause.paused_at, reason: pause.reason.clone() })
}

fn processes(name: AnyWorker, stored: &Stored) -> Vec<Process> {
    let process = |row: &oversight::Process| Process {
        host: row.host.clone(),
        pid: row.pid,
        version: row.version.clone(),
        state: row.state.clone(),
        is_alive: row.is_alive(),
        running_seconds: row.running_seconds,
        silent_seconds: row.silent_seconds,
        in_flight: row.in_flight,
        rate: row.rate,
        settled: row.settled,
    };
    of_worker(name, stored).filter(|row| row.silent_seconds < REMEMBERED).map(process).collect()
}

fn oldest_in_hand(name: AnyWorker, stored: &Stored) -> Option<DateTime<Utc>> {
    of_worker(name, stored).filter(|row| row.is_alive()).filter_map(|row| row.oldest_received_at).min()
}

fn of_worker(name: AnyWorker, stored: &Stored) -> impl Iterator<Item = &oversight::Process> {
    stored.processes.iter().filter(move |row| row.worker == name.as_str())
}

impl Snapshot {
    /// The management plugin knows better: it sees every ingress, and every process.
    fn add_states(&mut self, prefix: &str, states: &BTreeMap<String, QueueState>) {
        for worker in &mut self.workers {
            let state = |part: &str| states.get(&format!("{prefix}.{}{part}", worker.worker));
            let Some(own) = state("") else { continue };
            let in_hand = |state: &QueueState| state.unacknowledged.unwrap_or_default();
            worker.in_flight = Some(in_hand(own) + state(".suspect").map_or(0, in_hand));
            worker.rate_in = Some(own.publish_rate);
        }
    }

    /// How fast events came in since `before`: what the ingresses have accepted. One that started since begins at none.
    fn add_rates(&mut self, before: &Self) {
        let seconds = (self.at - before.at).as_seconds_f64();
        for worker in &mut self.workers {
            let accepted = |ingresses: &[Ingress]| {
                let of_ingress = |ingress: &Ingress| {
                    let accepted = &ingress.shown.as_ref()?.accepted;
                    Some(accepted.get(&worker.worker).copied().unwrap_or_default())
                };
                ingresses.iter().map(of_ingress).sum::<Option<u64>>()
            };
            let is_of_events = worker.worker.parse::<WorkerName>().is_ok();
            let both = accepted(&self.ingresses).zip(accepted(&before.ingresses)).filter(|_| is_of_events);
            worker.rate_in =
                both.filter(|_| seconds > 0.0).map(|(now, then)| now.saturating_sub(then) as f64 / seconds);
        }
    }
}

impl Worker {
    /// How many events wait for it, in whichever way; `None` where the queue does not tell.
    pub(super) fn waiting(&self) -> Option<u64> {
        self.waits.map(|waits| waits.waiting + waits.retrying + waits.suspects)
    }

    /// Its processes that have reported of late.
    pub(super) fn alive(&self) -> impl Iterator<Item = &Process> {
        self.processes.iter().flatten().filter(|process| process.is_alive)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// All is well: every worker has a process, and nothing waits.
    pub(in crate::status) fn well() -> Snapshot {
        let worker = |name: AnyWorker| Worker {
            worker: name.as_str().to_owned(),
            waits: Some(Waits { consumers: Some(1), ..Waits::default() }),
            in_flight: Some(0),
            rate_in: Some(0.0),
            rate_out: Some(0.0),
            oldest_received_at: None,
            dead: Some(0),
            replaying: Some(0),
            paused: None,
            processes: Some(vec![process(1)]),
        };
        Snapshot {
            at: Utc::now(),
            attention: Vec::new(),
            workers: AnyWorker::ALL.into_iter().map(worker).collect(),
            unrouted: Some(0),
            ingresses: Vec::new(),
            recordings: Some(Recordings { in_progress: Vec::new(), waiting: 0 }),
            died_since_yesterday: Some(0),
            unreachable: Vec::new(),
        }
    }

    /// A process that takes what comes.
    pub(in crate::status) fn process(pid: i64) -> Process {
        Process {
            host: "vm".into(),
            pid,
            version: "0".into(),
            state: oversight::TAKING.into(),
            is_alive: true,
            running_seconds: 60.0,
            silent_seconds: 1.0,
            in_flight: 0,
            rate: 0.0,
            settled: 0,
        }
    }

    #[test]
    fn what_nobody_tells_is_not_made_up() {
        let unknown = worker(AnyWorker::Events(WorkerName::Rooms), None, None);
        assert!(unknown.waits.is_none() && unknown.waiting().is_none() && unknown.processes.is_none());
        assert_eq!((unknown.in_flight, unknown.dead, unknown.replaying), (None, None, None));
        assert_eq!(unknown.rate_out, None);
    }

    #[test]
    fn of_no_process_the_rate_is_a_plain_zero() {
        let recordings = Recordings { in_progress: Vec::new(), waiting: 0 };
        let stored = Stored {
            processes: Vec::new(),
            pauses: Vec::new(),
            unresolved: Vec::new(),
            recordings,
            died_since_yesterday: 0,
        };
        let idle = worker(AnyWorker::DeadLetters, Some(&stored), None);
        assert_eq!(format!("{:.1}", idle.rate_out.unwrap()), "0.0");
        assert_eq!((idle.in_flight, idle.dead), (Some(0), Some(0)));
    }
}
