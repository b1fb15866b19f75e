//! `rollcall purge`: what waits for a worker goes to the dead letters, as dropped, from where it can be restored.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::replay::Run;
use rollcall_shared::dead_letters::{self, By};
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{Depth, Drained, Queue, Removed};
use rollcall_shared::store;
use sea_orm::{DatabaseConnection, DbErr};
use serde_json::json;

use crate::progress::Progress;
use crate::who::{self, Who};
use crate::{confirm, migrate, output};

/// How many go into one transaction.
const AT_ONCE: usize = 200;

/// Take what waits for a worker out of its queue, to the dropped dead letters.
///
/// That is what waits for its first try, for another one, and what came back from a process that died; not what a worker has in
/// hand, and not what comes in after this has begun. Nothing is lost: it says by which run `rollcall dlq list`, `restore` and
/// `replay` find what it dropped. Pause the worker first, or it takes its share meanwhile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  rollcall pause recordings
  rollcall purge recordings --reason 'the pilot is over, nobody needs these'
  rollcall resume recordings")]
pub(crate) struct Args {
    /// Which worker's: attendance, rooms or recordings.
    worker: WorkerName,
    /// Why: it stands beside each of them.
    #[arg(long, value_name = "TEXT", value_parser = who::reason)]
    reason: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    who: Who,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(config)?;
    let Args { worker, reason, yes, who, json } = args;
    let db = migrate::migrated(&settings.database.url, 1).await?;
    let queue = Queue::open(&settings.queue, "rollcall purge")?;
    let waiting = waiting(&queue, &settings, worker).await?;
    if waiting == 0 {
        let nothing = json!({ "worker": worker.as_str(), "dropped": 0, "run": null });
        if json { output::print_json(&nothing) } else { output::print(format_args!("Nothing waits for {worker}.")) }?;
        return Ok(ExitCode::SUCCESS);
    }
    if !yes {
        let events = if waiting == 1 { "event that waits" } else { "events that wait" };
        confirm::or_stop(&format!("The {waiting} {events} for {worker} will be dropped; that can be undone."))?;
    }
    let drained = Drained::Waiting(worker, settings.retry(worker).clone());
    let run = Run::new(By { name: who.name(), reason: Some(reason.clone()) }, None).id;
    let purge = dead_letters::Purge { run: run.clone(), who: who.name(), reason };
    let dropped = Purge { queue, db, purge }.run(&drained, waiting).await?;
    if json {
        let outcome = json!({ "worker": worker.as_str(), "dropped": dropped, "run": run });
        output::print_json(&outcome)?;
    } else {
        output::print(format_args!(
            "Dropped {dropped} of them (run {run}). To see them, and to have them back:\n  rollcall dlq list --run {run}\n  \
             rollcall dlq restore --run {run}\n  rollcall dlq replay --run {run}"
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How many messages wait for a worker, in whichever way.
async fn waiting(queue: &Queue, settings: &Settings, worker: WorkerName) -> Result<u64> {
    let depths = queue.depths(settings).await?;
    let of_worker =
        depths.workers.into_iter().find(|depth| depth.worker == worker).context("every worker has a queue")?;
    let Depth { waiting, retrying, suspects, .. } = of_worker;
    Ok(waiting + retrying + suspects)
}

struct Purge {
    queue: Queue,
    db: DatabaseConnection,
    purge: dead_letters::Purge,
}

impl Purge {
    /// Moves all that the drain has; how many dead letters it is, of about `waiting`.
    async fn run(&self, drained: &Drained, waiting: u64) -> Result<u64> {
        let mut drain = self.queue.drain(drained).await?;
        let progress = Progress::new("dropping", waiting);
        let mut dropped = 0;
        loop {
            let messages = drain.next(AT_ONCE).await.with_context(|| self.so_far(dropped))?;
            if messages.is_empty() {
                return Ok(dropped);
            }
            dropped += self.drop_all(&messages).await.with_context(|| self.so_far(dropped))?;
            // What is dropped and still there is dropped once, when this is run again.
            drain.confirm().await.with_context(|| self.so_far(dropped))?;
            progress.set(dropped);
        }
    }

    /// How many dead letters these are: the queue may have given one twice, or a copy of one.
    async fn drop_all(&self, messages: &[Removed]) -> Result<u64, DbErr> {
        let purge = &self.purge;
        store::transaction(&self.db, |tx| async move { dead_letters::purged(&tx, messages, purge).await }).await
    }

    fn so_far(&self, dropped: u64) -> String {
        format!("{dropped} were dropped (run {}), and the rest waits as before: run it again", self.purge.run)
    }
}
