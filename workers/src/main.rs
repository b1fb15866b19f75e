//! `rollcall-worker`: one of the workers, until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::Parser;
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::causes::exit_code;
use rollcall_shared::config::Settings;
use rollcall_shared::event::{AnyWorker, WorkerName};
use rollcall_shared::queue::Queue;
use rollcall_shared::telemetry::admin::Admin;
use rollcall_shared::telemetry::obstacles::Obstacles;
use rollcall_shared::{private, shutdown, telemetry};
use rollcall_workers::program::{self, Alone, Surroundings};
use sea_orm::DatabaseConnection;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Applies events from the queue to the database. Run as many as you like.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which worker to run: attendance, rooms, recordings or dead-letters.
    worker: AnyWorker,
    /// The settings; without it, rollcall.toml in the working directory, if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(run(Arguments::parse()).await)
}

async fn run(Arguments { worker, config }: Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(config.as_deref()).context("the settings cannot be used")?;
    telemetry::init(&settings.log)?;
    settings.warn();
    private::keep(&settings, worker == AnyWorker::Events(WorkerName::Recordings))?;
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let (obstacles, drained) = (Obstacles::default(), CancellationToken::new());
    let admin = match settings.workers.admin_address {
        Some(address) => {
            let admin = Admin::bind(address).await?.known_as(&settings.workers.admin_hosts);
            Some(admin.serve(readiness(&obstacles, &stop), drained.clone()))
        }
        None => None,
    };
    let admin = admin.map(tokio::spawn);

    if let Some(db) = stop.run_until_cancelled(database(&settings, worker, &obstacles)).await {
        let queue = Queue::open(&settings.queue, &format!("rollcall-worker {worker}"))?;
        let surroundings = Surroundings { queue, db: db?, obstacles, alone: Alone::default() };
        program::run(worker, &settings, surroundings, stop).await?;
    }
    drained.cancel();
    if let Some(admin) = admin {
        admin.await.context("the admin address failed")?;
    }
    info!(%worker, "stopped");
    Ok(())
}

/// The database, once it is there and migrated.
async fn database(settings: &Settings, worker: AnyWorker, obstacles: &Obstacles) -> anyhow::Result<DatabaseConnection> {
    let url = &settings.database.url;
    let db = program::connect(url, program::connections(worker, settings), std::slice::from_ref(obstacles)).await?;
    let pending = Migrator::get_pending_migrations_read_only(&db)
        .await
        .map_err(|error| anyhow!("cannot tell whether the database is migrated: {error}"))?;
    if !pending.is_empty() {
        bail!("the database at {url} is not migrated ({} to go): run `rollcall migrate up`", pending.len());
    }
    Ok(db)
}

fn readiness(obstacles: &Obstacles, stop: &CancellationToken) -> impl Fn() -> Result<String, String> + use<> {
    let (obstacles, stop) = (obstacles.clone(), stop.clone());
    move || if stop.is_cancelled() { Err("draining".into()) } else { obstacles.check().map(|()| "ready".into()) }
}
