//! The attendance worker, with a rule that some events are too much for: one whose person is called `kill` kills the
//! process, one whose person is called `panic` panics.

use std::path::PathBuf;

use clap::Parser;
use rollcall_shared::config::Settings;
use rollcall_shared::event::{Change, WorkerName};
use rollcall_shared::queue::Queue;
use rollcall_shared::telemetry::obstacles::Obstacles;
use rollcall_shared::{shutdown, store, telemetry};
use rollcall_workers::attendance::Attendance;
use rollcall_workers::program::{self, Alone, Surroundings};
use rollcall_workers::worker::{Batch, Failure, Handled, Worker};

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    config: PathBuf,
}

struct Poisoned(Attendance);

impl Worker for Poisoned {
    const NAME: WorkerName = WorkerName::Attendance;

    async fn handle(&self, batch: &Batch) -> Result<Handled, Failure> {
        for event in batch.events() {
            match &event.change {
                Change::Joined(connection) if connection.name.as_deref() == Some("kill") => std::process::abort(),
                Change::Joined(connection) if connection.name.as_deref() == Some("panic") => panic!("as told"),
                _ => {}
            }
        }
        self.0.handle(batch).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::load(Some(&Arguments::parse().config))?;
    telemetry::init(&settings.log)?;
    let db = store::connect(&settings.database.url, 4).await?;
    let worker = Poisoned(Attendance::new(&settings, db.clone()));
    let queue = Queue::open(&settings.queue, "rollcall-poisoned-worker")?;
    let surroundings = Surroundings { queue, db, obstacles: Obstacles::default(), alone: Alone::default() };
    program::run_worker(worker, &settings, surroundings, shutdown::on_signals()?).await
}
