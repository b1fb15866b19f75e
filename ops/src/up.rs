//! `rollcall up`: the ingress and every worker in one process, for one machine.
//!
//! What it needs and is not there, it makes: the queue's file, the database and its tables, the folder of recordings. Its parts
//! are the same as the programs of their own, and share nothing but the queue and the database.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, Result};
use rollcall_ingress::program::Ingress;
use rollcall_shared::config::Settings;
use rollcall_shared::event::{AnyWorker, UnknownName, WorkerName};
use rollcall_shared::queue::{Publisher, Queue};
use rollcall_shared::telemetry::admin::Admin;
use rollcall_shared::telemetry::obstacles::Obstacles;
use rollcall_shared::{private, shutdown, telemetry};
use rollcall_workers::program::{self, Alone, Surroundings};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::address::reachable;
use crate::{migrate, output};

/// Run everything in one process: the ingress and all workers.
///
/// Without any settings it keeps its queue, its database and its recordings under data/ in the working directory, needs nothing
/// but ffmpeg, and says what to tell it and PlugNMeet. Stops on Ctrl-C, after what it has begun.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out all parts but these: ingress, attendance, rooms, recordings, dead-letters.
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<Part>,
}

/// What can run by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Ingress,
    Worker(AnyWorker),
}

impl FromStr for Part {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let worker = || name.parse().map(Self::Worker);
        let unknown =
            |_: UnknownName| format!("it is one of ingress, {}", AnyWorker::ALL.map(AnyWorker::as_str).join(", "));
        if name == "ingress" { Ok(Self::Ingress) } else { worker().map_err(unknown) }
    }
}

impl Args {
    fn has(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(config).context("the settings cannot be used")?;
    telemetry::init(&settings.log)?;
    settings.warn();
    private::keep(&settings, args.has(Part::Worker(AnyWorker::Events(WorkerName::Recordings))))?;
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    // Addresses first: if another one runs here, nothing was touched.
    let ingress = if args.has(Part::Ingress) { Some(Ingress::bind(&settings).await?) } else { None };
    let admin = admin(&settings, ingress.as_ref()).await?;
    rollcall_ingress::describe_metrics();

    let queue = Queue::open(&settings.queue, "rollcall up")?;
    let publisher = if ingress.is_some() { Some(queue.publisher(&settings.ingress).await?) } else { None };
    let workers: Vec<_> = AnyWorker::ALL.into_iter().filter(|worker| args.has(Part::Worker(*worker))).collect();
    let obstacles: Vec<_> = workers.iter().map(|_| Obstacles::default()).collect();
    let (admin_address, drained) = (admin.as_ref().map(Admin::local_addr).transpose()?, CancellationToken::new());
    let readiness = readiness(publisher.clone(), obstacles.clone(), stop.clone());
    let admin = admin.map(|admin| tokio::spawn(admin.serve(readiness, drained.clone())));

    let mut running = JoinSet::new();
    if let (Some(ingress), Some(publisher)) = (ingress, publisher) {
        let address = ingress.address();
        output::print(Welcome { settings: &settings, address })?;
        let admin_address = admin_address.map(tracing::field::display);
        info!(%address, admin_address, paths = ?settings.ingress.paths, "The ingress takes webhooks.");
        let (settings, stop) = (settings.clone(), stop.clone());
        running.spawn(async move {
            // What a part cannot go on without, the others are not to hide: whoever supervises this starts it again.
            let _others = stop.clone().drop_guard();
            ingress.run(&settings, &publisher, stop).await;
            Ok(())
        });
    }
    let working = work(workers, settings, queue, obstacles, stop.clone());
    running.spawn(async move {
        let _others = stop.clone().drop_guard();
        working.await
    });
    let ended = until_all_end(running).await;
    drained.cancel();
    if let Some(admin) = admin {
        admin.await.context("the admin address failed")?;
    }
    ended?;
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The ingress's admin address, or for workers alone theirs, so that both can run on one machine.
async fn admin(settings: &Settings, ingress: Option<&Ingress>) -> Result<Option<Admin>> {
    let (name, address, hosts) = if ingress.is_some() {
        ("ingress.admin_address", Some(settings.ingress.admin_address), &settings.ingress.admin_hosts)
    } else {
        ("workers.admin_address", settings.workers.admin_address, &settings.workers.admin_hosts)
    };
    let Some(address) = address else { return Ok(None) };
    let admin = Admin::bind(address).await;
    let admin = admin
        .with_context(|| format!("setting {name} cannot be used: does another Rollcall run there?"))?
        .known_as(hosts);
    Ok(Some(match ingress {
        Some(ingress) => admin.with(ingress.rejections()),
        None => admin,
    }))
}

/// Runs the workers, as soon as the database is there; meanwhile the ingress takes webhooks.
async fn work(
    workers: Vec<AnyWorker>,
    settings: Settings,
    queue: Queue,
    obstacles: Vec<Obstacles>,
    stop: CancellationToken,
) -> Result<()> {
    let url = &settings.database.url;
    let connections = workers.iter().map(|worker| program::connections(*worker, &settings)).sum();
    let connecting = async {
        let db = program::connect(&migrate::to_be_created(url)?, connections, &obstacles).await?;
        migrate::up(url).await?;
        anyhow::Ok(db)
    };
    let Some(db) = stop.run_until_cancelled(connecting).await else { return Ok(()) };
    let (db, alone) = (db?, Alone::default());
    let mut running = JoinSet::new();
    for (worker, obstacles) in workers.into_iter().zip(obstacles) {
        let (settings, stop) = (settings.clone(), stop.clone());
        let surroundings = Surroundings { queue: queue.clone(), db: db.clone(), obstacles, alone: alone.clone() };
        running.spawn(async move {
            let _others = stop.clone().drop_guard();
            let ended = program::run(worker, &settings, surroundings, stop).await;
            ended.with_context(|| format!("the worker {worker} has ended"))
        });
    }
    // An ingress without workers goes on.
    if running.is_empty() {
        stop.cancelled().await;
    }
    until_all_end(running).await
}

/// The first that went wrong is what is told.
async fn until_all_end(mut running: JoinSet<Result<()>>) -> Result<()> {
    let mut first = Ok(());
    while let Some(ended) = running.join_next().await {
        first = first.and(ended.context("a part panicked").and_then(|ended| ended));
    }
    first
}

fn readiness(
    publisher: Option<Publisher>,
    obstacles: Vec<Obstacles>,
    stop: CancellationToken,
) -> impl Fn() -> Result<String, String> {
    move || {
        if stop.is_cancelled() {
            return Err("draining".into());
        }
        obstacles.iter().try_for_each(Obstacles::check)?;
        publisher.as_ref().map_or_else(|| Ok("ready".into()), Publisher::readiness)
    }
}

/// What to tell Rollcall, and what to tell PlugNMeet.
struct Welcome<'a> {
    settings: &'a Settings,
    address: SocketAddr,
}

impl fmt::Display for Welcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.settings.ingress.paths.first().map_or("", String::as_str);
        let scheme = self.settings.ingress.scheme();
        let url = format!("{scheme}://{}{path}", reachable(self.address));
        if self.settings.plugnmeet.is_empty() {
            write!(
                f,
                "No PlugNMeet server is set, so every webhook will be refused. Put this into rollcall.toml and start again:\n\n\
                 [plugnmeet.main]\n\
                 url = \"https://meet.example.org\"   # where PlugNMeet is\n\
                 api_key = \"…\"                      # client.api_key of its config.yaml\n\
                 api_secret = \"…\"                   # client.secret\n\n"
            )?;
        }
        write!(
            f,
            "Webhooks are taken at {url}. In PlugNMeet's config.yaml, with this machine's name if PlugNMeet is on another:\n\n\
             client:\n  webhook_conf:\n    enable: true\n    url: \"{url}\"\n"
        )
    }
}
