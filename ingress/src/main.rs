//! `rollcall-ingress`: reads the settings, takes webhooks in until it is told to stop, drains.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use rollcall_ingress::describe_metrics;
use rollcall_ingress::program::Ingress;
use rollcall_shared::causes::exit_code;
use rollcall_shared::config::Settings;
use rollcall_shared::queue::{Publisher, Queue};
use rollcall_shared::telemetry::admin::Admin;
use rollcall_shared::{private, shutdown, telemetry};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Takes PlugNMeet's webhooks: verified, durable in the queue, answered.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The settings; without it, rollcall.toml in the working directory, if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let settings = Settings::load(arguments.config.as_deref()).context("the settings cannot be used")?;
    telemetry::init(&settings.log)?;
    settings.warn();
    private::keep(&settings, false)?;
    if settings.plugnmeet.is_empty() {
        bail!("setting plugnmeet is missing: without a [plugnmeet.<name>] every webhook would be refused");
    }
    let stop = shutdown::on_signals().context("cannot listen for signals")?;

    let admin = Admin::bind(settings.ingress.admin_address).await?.known_as(&settings.ingress.admin_hosts);
    describe_metrics();
    let ingress = Ingress::bind(&settings).await?;
    let publisher = Queue::open(&settings.queue, "rollcall-ingress")?.publisher(&settings.ingress).await?;

    let drained = CancellationToken::new();
    let (address, admin_address) = (ingress.address(), admin.local_addr()?);
    let admin = tokio::spawn(
        admin.with(ingress.rejections()).serve(readiness(publisher.clone(), stop.clone()), drained.clone()),
    );
    info!(%address, %admin_address, paths = ?settings.ingress.paths, "The ingress takes webhooks.");
    ingress.run(&settings, &publisher, stop).await;
    drained.cancel();
    admin.await.context("the admin address failed")?;
    info!("The ingress has stopped.");
    Ok(())
}

/// Whether webhooks can be taken in now, or why not.
fn readiness(publisher: Publisher, stop: CancellationToken) -> impl Fn() -> Result<String, String> {
    move || if stop.is_cancelled() { Err("draining".into()) } else { publisher.readiness() }
}
