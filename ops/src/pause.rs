//! `rollcall pause` and `rollcall resume`: a worker rests, and goes on.
//!
//! The wish is in the database, where the worker's processes look every two seconds; what they make of it they tell there.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::Utc;
use rollcall_shared::config::Settings;
use rollcall_shared::event::AnyWorker;
use rollcall_shared::oversight;
use rollcall_shared::store::entity::worker_process::Model as Process;
use sea_orm::DatabaseConnection;
use tokio::time::sleep;

use crate::status::{self, is_alive};
use crate::who::Who;
use crate::{migrate, output, table};

/// How long to wait until the worker's processes have heard.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// Have a worker take no more events, until `rollcall resume`.
///
/// All processes of this worker finish what they have and take no more; those that start later rest too. Events wait in the
/// queue meanwhile, and nothing is lost. The other workers and the ingress go on.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall pause recordings --reason 'the storage is being moved'")]
pub(crate) struct Pause {
    /// Which worker: attendance, rooms, recordings or dead-letters.
    worker: AnyWorker,
    /// Why, for whoever wonders.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// Have a worker that was paused go on.
#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    /// Which worker: attendance, rooms, recordings or dead-letters.
    worker: AnyWorker,
}

pub(crate) async fn pause(args: Pause, config: Option<&Path>) -> Result<ExitCode> {
    let db = migrate::migrated(&Settings::load(config)?.database.url, 1).await?;
    let Pause { worker, reason, who } = args;
    if !oversight::pause(&db, worker, &who.name(), reason).await?
        && let Some(pause) = oversight::pause_of(&db, worker).await?
    {
        let at = table::exactly(pause.paused_at);
        output::print(format_args!("{worker} was paused already: by {}, {at}.", pause.paused_by))?;
    }
    let rests = |process: &Process| process.state == status::PAUSED && process.in_flight == 0;
    told(&db, worker, rests, &format!("{worker} rests"), "has not finished what it has").await
}

pub(crate) async fn resume(args: Resume, config: Option<&Path>) -> Result<ExitCode> {
    let db = migrate::migrated(&Settings::load(config)?.database.url, 1).await?;
    let worker = args.worker;
    if !oversight::resume(&db, worker).await? {
        output::print(format_args!("{worker} was not paused."))?;
        return Ok(ExitCode::SUCCESS);
    }
    let works = |process: &Process| process.state != status::PAUSED;
    told(&db, worker, works, &format!("{worker} goes on"), "has not heard of it").await
}

/// Waits until all processes of the worker are as they shall be, and says so, or which are not.
async fn told(
    db: &DatabaseConnection,
    worker: AnyWorker,
    is_done: impl Fn(&Process) -> bool,
    done: &str,
    not_yet: &str,
) -> Result<ExitCode> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = oversight::processes(db).await?;
        let ours = |process: &&Process| process.worker == worker.as_str() && is_alive(process, Utc::now());
        let (ready, waiting): (Vec<_>, Vec<_>) = processes.iter().filter(ours).partition(|process| is_done(process));
        if waiting.is_empty() {
            let running = match ready.len() {
                0 => "no process of it runs now".to_owned(),
                1 => "its one process has heard".to_owned(),
                count => format!("all {count} of its processes have heard"),
            };
            output::print(format_args!("{done}: {running}."))?;
            return Ok(ExitCode::SUCCESS);
        }
        if Instant::now() >= deadline {
            for Process { host, pid, in_flight, .. } in waiting {
                output::complain(format_args!(
                    "Process {pid} on {host} {not_yet} yet ({in_flight} in flight). `rollcall status` shows when it has."
                ));
            }
            return Ok(ExitCode::FAILURE);
        }
        sleep(LOOK_AGAIN).await;
    }
}
