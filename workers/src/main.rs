//! `rollcall-worker`: one of the workers, until it is told to stop.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::config::Settings;
use rollcall_shared::event::WorkerName;
use rollcall_shared::store::{self, ErrorKind};
use rollcall_shared::telemetry::admin::Admin;
use rollcall_shared::{shutdown, telemetry};
use rollcall_workers::attendance::Attendance;
use rollcall_workers::recordings::Recordings;
use rollcall_workers::rooms::Rooms;
use rollcall_workers::runner::{self, Limits};
use rollcall_workers::worker::Worker;
use sea_orm::DatabaseConnection;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long to wait before asking again for a database that was not there.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Connections to the database besides one for each batch at work.
const SPARE_CONNECTIONS: usize = 3;

/// Applies events from the queue to the database. Run as many as you like.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which worker to run: attendance, rooms or recordings.
    worker: WorkerName,
    /// The settings; without it, rollcall.toml in the working directory, if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings = Settings::load(arguments.config.as_deref()).context("the settings cannot be used")?;
    telemetry::init(&settings.log)?;
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let limits = limits(arguments.worker, &settings);
    let Some(db) = stop.run_until_cancelled(database(&settings, limits.concurrency + SPARE_CONNECTIONS)).await else {
        return Ok(());
    };
    let db = db?;

    let drained = CancellationToken::new();
    let admin = match settings.workers.admin_address {
        Some(address) => {
            Some(tokio::spawn(Admin::bind(address).await?.serve(readiness(stop.clone()), drained.clone())))
        }
        None => None,
    };
    match arguments.worker {
        WorkerName::Attendance => run(Attendance::new(&settings, db.clone()), &settings, limits, db, stop).await?,
        WorkerName::Rooms => run(Rooms::new(&settings, db.clone()), &settings, limits, db, stop).await?,
        WorkerName::Recordings => run(Recordings::new(&settings, db.clone())?, &settings, limits, db, stop).await?,
    }
    drained.cancel();
    if let Some(admin) = admin {
        admin.await.context("the admin address failed")?;
    }
    info!(worker = %arguments.worker, "stopped");
    Ok(())
}

/// Runs the worker; once told to stop, for as long as the settings allow.
async fn run<W: Worker>(
    worker: W,
    settings: &Settings,
    limits: Limits,
    db: DatabaseConnection,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut running = tokio::spawn(runner::run(
        worker,
        settings.queue.clone(),
        settings.retry(W::NAME).clone(),
        limits,
        db,
        stop.clone(),
    ));
    info!(worker = %W::NAME, "started");
    tokio::select! {
        ended = &mut running => return Ok(ended??),
        () = stop.cancelled() => {}
    }
    match timeout(settings.workers.drain_timeout, running).await {
        Ok(ended) => Ok(ended??),
        Err(_) => {
            bail!("what was under way did not end within workers.drain_timeout; the broker will deliver it again")
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

/// The database, once it is there and migrated.
async fn database(settings: &Settings, connections: usize) -> anyhow::Result<DatabaseConnection> {
    let url = settings.database_url()?;
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
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
    let pending = Migrator::get_pending_migrations_read_only(&db)
        .await
        .map_err(|error| anyhow!("cannot tell whether the database is migrated: {error}"))?;
    if !pending.is_empty() {
        bail!("the database at {url} is not migrated ({} to go): run `rollcall migrate up`", pending.len());
    }
    Ok(db)
}

fn readiness(stop: CancellationToken) -> impl Fn() -> Result<(), &'static str> {
    move || if stop.is_cancelled() { Err("draining") } else { Ok(()) }
}
