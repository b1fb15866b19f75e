//! `rollcall purge`: what waits for a worker goes to the dead letters, as dropped, from where it can be restored.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rollcall_shared::config::Settings;
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{Depth, Drained, Queue, Removed};
use rollcall_shared::{dead_letters, store};
use sea_orm::{DatabaseConnection, DbErr};

use crate::progress::Progress;
use crate::who::Who;
use crate::{confirm, migrate, output};

/// How many go into one transaction.
const AT_ONCE: usize = 200;

/// Take what waits for a worker out of its queue, to the dropped dead letters.
///
/// That is what waits for its first try, for another one, and what came back from a process that died; not what a worker has in
/// hand, and not what comes in after this has begun. Nothing is lost: `rollcall dlq list --state dropped` shows it, and
/// `rollcall dlq restore` and `replay` bring it back. Pause the worker first, or it takes its share meanwhile.
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
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    who: Who,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(config)?;
    let Args { worker, reason, yes, who } = args;
    let db = migrate::migrated(&settings.database.url, 1).await?;
    let queue = Queue::open(&settings.queue, "rollcall purge")?;
    let waiting = waiting(&queue, &settings, worker).await?;
    if waiting == 0 {
        output::print(format_args!("Nothing waits for {worker}."))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !yes {
        let events = if waiting == 1 { "event that waits" } else { "events that wait" };
        confirm::or_stop(&format!("The {waiting} {events} for {worker} will be dropped; that can be undone."))?;
    }
    let drained = Drained::Waiting(worker, settings.retry(worker).clone());
    let purge = dead_letters::Purge { run: String::new(), who: who.name(), reason };
    let purged = Purge { queue, db, purge }.run(&drained, waiting).await?;
    output::print(format_args!(
        "Dropped {purged} of them. To see them: rollcall dlq list --worker {worker} --state dropped --cause purged"
    ))?;
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
    /// Moves as many as waited when it began, or all there are if that is fewer; how many it were.
    async fn run(&self, drained: &Drained, waiting: u64) -> Result<u64> {
        let mut drain = self.queue.drain(drained).await?;
        let progress = Progress::new("dropping", waiting);
        let mut purged = 0;
        while purged < waiting {
            let most = usize::try_from(waiting - purged).unwrap_or(usize::MAX).min(AT_ONCE);
            let messages = drain.next(most).await.with_context(|| so_far(purged))?;
            if messages.is_empty() {
                break;
            }
            self.drop_all(&messages).await.with_context(|| so_far(purged))?;
            purged += messages.len() as u64;
            // What is dropped and still there is dropped once, when this is run again.
            drain.confirm().await.with_context(|| so_far(purged))?;
            progress.set(purged);
        }
        Ok(purged)
    }

    async fn drop_all(&self, messages: &[Removed]) -> Result<u64, DbErr> {
        let purge = &self.purge;
        store::transaction(&self.db, |tx| async move { dead_letters::purged(&tx, messages, purge).await }).await
    }
}

fn so_far(purged: u64) -> String {
    format!("{purged} were dropped, and the rest waits as before: run it again")
}
