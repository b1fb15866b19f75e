//! `rollcall-ingress`: reads the settings, takes webhooks in until it is told to stop, drains.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use rollcall_ingress::server::Server;
use rollcall_ingress::webhook::Webhooks;
use rollcall_ingress::{Timeouts, describe_metrics};
use rollcall_shared::config::Settings;
use rollcall_shared::queue::{Publisher, Queue};
use rollcall_shared::signature::Verifier;
use rollcall_shared::telemetry::admin::Admin;
use rollcall_shared::{shutdown, telemetry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The open files that are not connections: listeners, the broker, the log, the admin's own connections.
const OTHER_FILES: usize = 100;

/// Takes PlugNMeet's webhooks: verified, durable in the queue, answered.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// The settings; without it, rollcall.toml in the working directory, if there is one.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let settings = Settings::load(arguments.config.as_deref()).context("the settings cannot be used")?;
    telemetry::init(&settings.log)?;
    if settings.plugnmeet.is_empty() {
        bail!("setting plugnmeet is missing: without a [plugnmeet.<name>] every webhook would be refused");
    }
    let stop = shutdown::on_signals().context("cannot listen for signals")?;

    let admin = Admin::bind(settings.ingress.admin_address).await?;
    describe_metrics();
    let address = settings.ingress.address;
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let publisher = Queue::open(&settings.queue, "rollcall-ingress")?.publisher().await?;

    let drained = CancellationToken::new();
    let admin_address = admin.local_addr()?;
    let admin = tokio::spawn(admin.serve(readiness(publisher.clone(), stop.clone()), drained.clone()));
    let verifier = Verifier::new(settings.server_keys());
    let timeouts = Timeouts::default();
    let webhooks = Webhooks::new(&settings.ingress, verifier, publisher.clone(), timeouts.body);
    let server = Server::new(webhooks, timeouts, connection_limit(settings.ingress.max_connections));
    info!(address = %listener.local_addr()?, %admin_address, paths = ?settings.ingress.paths, "The ingress takes webhooks.");

    server.run(listener, stop, settings.ingress.drain_timeout).await;
    publisher.close().await;
    drained.cancel();
    admin.await.context("the admin address failed")?;
    info!("The ingress has stopped.");
    Ok(())
}

/// Whether webhooks can be taken in now, or why not.
fn readiness(publisher: Publisher, stop: CancellationToken) -> impl Fn() -> Result<String, String> {
    move || match publisher.obstacle() {
        _ if stop.is_cancelled() => Err("draining".into()),
        Some(obstacle) => Err(obstacle.into()),
        None => Ok("ready".into()),
    }
}

/// As many connections as the settings say and the process may have files for, which is made as many as can be.
fn connection_limit(wanted: usize) -> usize {
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum }) {
        warn!(%error, "The limit of open files cannot be raised.");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return wanted };
    let possible = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1);
    if possible < wanted {
        warn!(
            possible,
            wanted, "The limit of open files (ulimit -n) allows fewer connections than ingress.max_connections."
        );
    }
    wanted.min(possible)
}
