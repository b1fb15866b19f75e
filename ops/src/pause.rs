//! `rollcall pause` and `rollcall resume`: a worker rests, and goes on.
//!
//! The wish is in the database, where the worker's processes look every two seconds; what they make of it they report there.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{DateTime, Utc};
use rollcall_shared::config::Settings;
use rollcall_shared::display::in_line;
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::oversight::{self, PAUSED, Process};
use rollcall_shared::store::entity::worker_pause::Model as PauseRow;
use sea_orm::{DatabaseConnection, DbErr};
use serde::Serialize;
use tokio::time::sleep;

use crate::output::{self, counted};
use crate::who::{self, Who};
use crate::{migrate, table};

/// How long to wait for the worker's processes to go on: they look every two seconds.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Have a worker take no more events, until `rollcall resume`.
///
/// All processes of this worker finish what they have and take no more; those that start later rest too. Events wait in the
/// queue meanwhile, and nothing is lost. The other workers and the ingress go on. `rollcall status` and the worker's log say who
/// has paused it, and why.
///
/// Ends when they have finished, which may take a recording as long as it takes; after --timeout with 1, and the worker will
/// rest all the same.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall pause recordings --reason 'the storage is being moved'")]
pub(crate) struct Pause {
    /// Which worker: attendance, rooms, recordings or dead-letters.
    worker: AnyWorker,
    /// Why, for whoever wonders.
    #[arg(long, value_name = "TEXT", value_parser = who::reason)]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
    /// How long to wait until it has finished what it has.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// Have a worker that was paused go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    /// Which worker: attendance, rooms, recordings or dead-letters.
    worker: AnyWorker,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// What came of it, for programs.
#[derive(Debug, Serialize)]
struct Outcome {
    worker: &'static str,
    /// The pause that is now, or that has ended; `None` where there was none.
    pause: Option<Shown>,
    /// Whether this command has made the difference.
    changed: bool,
    #[serde(flatten)]
    heard: Heard,
}

#[derive(Debug, Serialize)]
struct Shown {
    by: String,
    at: DateTime<Utc>,
    reason: Option<String>,
}

/// What became of a wish.
#[derive(Debug, Default, Serialize)]
struct Heard {
    /// How many processes do as they shall.
    ready: usize,
    /// What is not as it shall be yet.
    waiting_for: WaitingFor,
}

#[derive(Debug, Default, Serialize)]
struct WaitingFor {
    processes: Vec<Waiting>,
    /// Recordings that outlive their delivery, and are fetched to their end.
    recordings: usize,
}

#[derive(Debug, Serialize)]
struct Waiting {
    host: String,
    pid: i64,
    in_flight: i64,
}

pub(crate) async fn pause(args: Pause, config: Option<&Path>) -> Result<ExitCode> {
    let db = migrate::migrated(&Settings::load(config)?.database.url, 1).await?;
    let Pause { worker, reason, who, timeout, json } = args;
    let changed = oversight::pause(&db, worker, &who.name(), reason).await?;
    let pause = oversight::pause_of(&db, worker).await?;
    if !changed
        && !json
        && let Some(pause) = &pause
    {
        output::print(format_args!("{worker} was paused already, {}; that is left as it is.", told(pause)))?;
    }
    let heard = heard(timeout, "to finish", async || resting(&db, worker).await).await?;
    let outcome = Outcome { worker: worker.as_str(), pause: pause.map(Shown::from), changed, heard };
    outcome.print(json, "rests", "has not finished what it has, and will rest then")
}

pub(crate) async fn resume(args: Resume, config: Option<&Path>) -> Result<ExitCode> {
    let db = migrate::migrated(&Settings::load(config)?.database.url, 1).await?;
    let Resume { worker, json } = args;
    let pause = oversight::resume(&db, worker).await?;
    if !json {
        match &pause {
            Some(pause) => output::print(format_args!("The pause is over: {}.", told(pause)))?,
            None => {
                output::print(format_args!("{worker} was not paused."))?;
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
    let heard = heard(PATIENCE, "to hear of it", async || working(&db, worker).await).await?;
    let changed = pause.is_some();
    let outcome = Outcome { worker: worker.as_str(), pause: pause.map(Shown::from), changed, heard };
    outcome.print(json, "goes on", "has not heard of it yet")
}

/// By whom, since when, and why.
fn told(pause: &PauseRow) -> String {
    let reason = pause.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
    in_line(&format!("by {} at {}{reason}", pause.paused_by, table::exactly(pause.paused_at)))
}

/// How far the worker has come to rest. A recording may be fetched on when its delivery is settled.
async fn resting(db: &DatabaseConnection, worker: AnyWorker) -> Result<Heard, DbErr> {
    let mut heard = of_processes(db, worker, |process| process.state == PAUSED && process.in_flight == 0).await?;
    if worker == AnyWorker::Events(WorkerName::Recordings) {
        heard.waiting_for.recordings = oversight::recordings_in_progress(db).await?.len();
    }
    Ok(heard)
}

async fn working(db: &DatabaseConnection, worker: AnyWorker) -> Result<Heard, DbErr> {
    of_processes(db, worker, |process| process.state != PAUSED).await
}

async fn of_processes(
    db: &DatabaseConnection,
    worker: AnyWorker,
    is_ready: impl Fn(&Process) -> bool,
) -> Result<Heard, DbErr> {
    let processes = oversight::processes(db).await?;
    let ours = processes.into_iter().filter(|process| process.worker == worker.as_str() && process.is_alive());
    let (ready, waiting): (Vec<_>, Vec<_>) = ours.partition(is_ready);
    let processes = waiting.into_iter().map(|Process { host, pid, in_flight, .. }| Waiting { host, pid, in_flight });
    Ok(Heard { ready: ready.len(), waiting_for: WaitingFor { processes: processes.collect(), recordings: 0 } })
}

/// Asks again and again until everything is as it shall be, or `limit` is over; says for what it waits.
async fn heard(limit: Duration, what_for: &str, ask: impl AsyncFn() -> Result<Heard, DbErr>) -> Result<Heard> {
    let began = Instant::now();
    let mut is_told = false;
    loop {
        let heard = ask().await?;
        if heard.waiting_for.is_nothing() || began.elapsed() >= limit {
            return Ok(heard);
        }
        // Who looks every two seconds needs no word about one.
        if !is_told && began.elapsed() > Duration::from_secs(3) {
            is_told = true;
            let limit = humantime::format_duration(limit);
            output::complain(format_args!("Waiting up to {limit} for {} {what_for}…", heard.waiting_for));
        }
        sleep(LOOK_AGAIN).await;
    }
}

impl WaitingFor {
    fn is_nothing(&self) -> bool {
        self.processes.is_empty() && self.recordings == 0
    }
}

impl fmt::Display for WaitingFor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let process =
            |Waiting { host, pid, in_flight }: &Waiting| format!("process {pid} on {host} ({in_flight} in flight)");
        let mut what: Vec<_> = self.processes.iter().map(process).collect();
        if self.recordings > 0 {
            what.push(counted(
                self.recordings as u64,
                "recording that is being fetched",
                "recordings that are being fetched",
            ));
        }
        f.write_str(&what.join(", "))
    }
}

impl Outcome {
    /// Says what came of it; the exit status says whether all of it is done.
    fn print(&self, json: bool, done: &str, not_yet: &str) -> Result<ExitCode> {
        let Self { worker, heard: Heard { ready, waiting_for }, .. } = self;
        if json {
            output::print_json(self)?;
        } else if waiting_for.is_nothing() {
            let running = match ready {
                0 => "no process of it runs now".to_owned(),
                1 => "its one process has heard".to_owned(),
                count => format!("all {count} of its processes have heard"),
            };
            output::print(format_args!("{worker} {done}: {running}."))?;
        } else {
            output::complain(format_args!(
                "{worker} {not_yet}: {waiting_for}. `rollcall status` shows when that is so."
            ));
        }
        Ok(if waiting_for.is_nothing() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl From<PauseRow> for Shown {
    fn from(row: PauseRow) -> Self {
        let PauseRow { paused_by: by, paused_at: at, reason, .. } = row;
        Self { by, at, reason }
    }
}
