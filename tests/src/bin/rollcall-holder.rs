//! Takes deliveries of the attendance worker and settles none: it is there to be killed. Or it takes one that came back, and
//! dies of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use rollcall_shared::config::Settings;
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{InHand, Queue, Subscription};
use rollcall_shared::telemetry;
use rollcall_shared::telemetry::obstacles::Obstacles;
use tokio_util::sync::CancellationToken;
use tracing::info;

#[derive(Parser)]
struct Arguments {
    #[arg(long)]
    config: PathBuf,
    /// How many to take.
    #[arg(long, default_value_t = 1)]
    count: u16,
    /// Take one that came back.
    #[arg(long)]
    suspect: bool,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings = Settings::load(Some(&arguments.config))?;
    telemetry::init(&settings.log)?;
    let subscription = Subscription {
        worker: WorkerName::Attendance,
        retry: settings.attendance.retry.clone(),
        prefetch: arguments.count,
        in_hand: InHand::default(),
        obstacles: Obstacles::default(),
        stop: CancellationToken::new(),
    };
    let mut consumer = Queue::open(&settings.queue, "rollcall-holder")?.consumer(subscription).await?;
    while arguments.suspect && consumer.suspects.wait().await {
        if consumer.suspects.take().await.is_some() {
            std::process::abort();
        }
    }
    let mut held = Vec::new();
    while held.len() < arguments.count.into() {
        held.extend(consumer.main.next_batch(1, Duration::ZERO).await.unwrap_or_default());
    }
    info!(deliveries = held.len(), "has taken what it wants");
    std::future::pending().await
}
