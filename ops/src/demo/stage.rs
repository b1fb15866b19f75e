//! A run of the demo: everything it sets up, the play, and the clearing away, whatever happened.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::{FutureExt, future};
use rollcall_ops::standin::{Recording, Sender, StandIn};
use rollcall_shared::causes::in_one_line;
use rollcall_shared::config::Settings;
use rollcall_shared::queue::Queue;
use sea_orm::DatabaseConnection;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;
use uuid::Uuid;

use super::class::{self, Class, Post};
use super::database::OwnDatabase;
use super::directory::Directory;
use super::programs::{self, Binaries, Programs, free_address};
use super::progress::Progress;
use super::tables::{self, Found, Played};
use super::{Args, report, video};
use crate::output;

/// How long the workers may take after the last webhook until the tables are as they should be.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
/// Where the ingress takes PlugNMeet's webhooks.
const WEBHOOK_PATH: &str = "/webhooks/plugnmeet";
const API_KEY: &str = "demo-key";
/// How many differences are shown.
const SHOWN: usize = 30;

/// Everything that a run has, and that has to go again.
pub(super) struct Stage {
    /// Those of the pipeline's programs.
    settings: Value,
    binaries: Binaries,
    directory: Directory,
    database: OwnDatabase,
    has_queues: bool,
    server: StandIn,
    programs: Programs,
    progress: Progress,
}

/// What is to be played, and what the tables should say in the end.
struct Plan {
    class: Class,
    seed: u64,
    video: PathBuf,
    truth: Played,
}

/// What came of it.
struct Outcome {
    found: Found,
    differences: Vec<String>,
    summary: String,
}

#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;

impl Stage {
    /// A run that has not begun: nothing is made yet but its directory.
    pub(super) async fn new(args: &Args) -> Result<Self> {
        let broker = args.queue.as_ref().filter(|queue| queue.sqlite_path().is_none());
        let binaries = Binaries::find(broker.is_some())?;
        let directory = Directory::open(args.dir.as_deref())?;
        let work = directory.work();
        let queue = broker.map_or_else(|| format!("sqlite://{}/queue.db", work.display()), |url| url.expose().into());
        let id = &Uuid::new_v4().simple().to_string()[..8];
        let database = OwnDatabase::new(args.database.as_ref(), id, &work)?;
        let secret = SecretString::from(Uuid::new_v4().simple().to_string());
        let server = StandIn::start(API_KEY, &secret).await.context("cannot start the stand-in for PlugNMeet")?;
        let storage = Url::from_directory_path(directory.media()).ok().context("a directory makes a URL")?;
        // Nobody waits for minutes here, as the defaults do.
        let retry = "1s,2s,4s,8s";
        let settings = json!({
            "queue": { "url": queue, "prefix": format!("demo-{id}") },
            "database": { "url": database.url().expose() },
            "storage": { "url": storage },
            "ingress": {
                "address": free_address()?, "admin_address": free_address()?, "paths": WEBHOOK_PATH,
                "spool": { "path": work.join("spool.db") },
            },
            "plugnmeet": {
                tables::SOURCE: { "url": server.url(), "api_key": API_KEY, "api_secret": secret.expose_secret() },
            },
            "attendance": { "retry": retry },
            "rooms": { "retry": retry },
            "recordings": { "retry": retry },
            "log": { "format": "text" },
        });
        Ok(Self {
            settings,
            binaries,
            directory,
            database,
            has_queues: false,
            server,
            programs: Programs::none(),
            progress: Progress::new(),
        })
    }

    /// Plays, reports, and leaves nothing behind, whatever happens in between.
    pub(super) async fn run(mut self, args: &Args) -> Result<ExitCode> {
        let outcome = tokio::select! {
            outcome = AssertUnwindSafe(self.play(args)).catch_unwind() => outcome,
            signal = interrupted() => Ok(signal.and_then(|()| Err(Interrupted.into()))),
        };
        let is_right = matches!(&outcome, Ok(Ok(outcome)) if outcome.differences.is_empty());
        self.progress.finish(is_right);
        let is_clear = self.clear(args, is_right).await;
        match outcome {
            Ok(Ok(outcome)) => {
                self.report(args, &outcome)?;
                Ok(if is_right && is_clear { ExitCode::SUCCESS } else { ExitCode::FAILURE })
            }
            // As a shell has it: 128 and the signal's number.
            Ok(Err(error)) if error.is::<Interrupted>() => Ok(ExitCode::from(130)),
            Ok(Err(error)) => {
                self.show_logs();
                Err(error)
            }
            Err(panic) => {
                self.show_logs();
                resume_unwind(panic)
            }
        }
    }

    async fn play(&mut self, args: &Args) -> Result<Outcome> {
        self.progress.step("making a database and a video");
        // There is nothing to delete yet; it says in time whether the broker lets us in.
        self.delete_queues().await?;
        self.database.create().await?;
        let db = self.database.connect().await?;
        tables::announce_class(&db).await.context("cannot announce the class in the tables")?;
        let plan = self.plan(args).await?;

        self.progress.step("starting the ingress and the workers");
        self.has_queues = true;
        self.programs.start(&self.binaries, &self.settings, &self.directory.logs()).await?;
        self.progress.step_of_posts("playing 45 minutes of class", plan.class.posts.len());
        let took = self.play_class(&plan, args.speed).await?;
        self.progress.step("waiting until the tables say what was played");
        let settled = self.settle(&db, &plan.truth).await?;

        // What is under way is finished by this, so nothing changes the tables any more.
        self.progress.step("stopping the ingress and the workers");
        self.programs.stop().await?;
        let found = Found::read(&db, &self.directory.media()).await?;
        db.close().await?;
        let differences = plan.truth.differences(&found.played);
        Ok(Outcome { found, differences, summary: summary(&plan, took, settled) })
    }

    async fn plan(&self, args: &Args) -> Result<Plan> {
        let video = video::make(&self.directory.work()).await?;
        let seed = args.seed.unwrap_or_else(|| rand::random_range(1..1_000_000));
        let recorded = tokio::fs::read(&video).await?;
        let class = Class::write(opened_at()?, recorded.len() as u64, seed);
        let recording = tables::Recording::archived(&recorded);
        let truth = Played { sessions: class.truth.clone(), recordings: [(class.record_id.clone(), recording)].into() };
        Ok(Plan { class, seed, video, truth })
    }

    /// Each room's webhooks go one by one over a connection of their own, as from a real server. How long it took.
    async fn play_class(&self, plan: &Plan, speed: u32) -> Result<Duration> {
        let address = self.settings()?.ingress.address;
        let url = Url::parse(&format!("http://{address}{WEBHOOK_PATH}"))?;
        let begun = Instant::now();
        let rooms = (0..plan.class.rooms.len()).map(async |room| {
            let mut sender = self.server.sender(url.clone())?;
            for post in plan.class.posts.iter().filter(|post| post.room == room) {
                sleep_until(begun + post.after / speed).await;
                if post.webhook.event == "recording_proceeded" {
                    self.server.add_recording(recording(plan));
                }
                self.post(&mut sender, post).await?;
            }
            anyhow::Ok(())
        });
        future::try_join_all(rooms).await?;
        Ok(begun.elapsed())
    }

    async fn post(&self, sender: &mut Sender, post: &Post) -> Result<()> {
        let sent = sender.send(&post.webhook).await;
        self.progress.posted(post.after);
        if sent.is_accepted() {
            return Ok(());
        }
        let answer = sent.answer.map_or_else(|error| error, |status| status.to_string());
        bail!("the ingress did not take a {} in {} attempts: {answer}", post.webhook.event, sent.attempts)
    }

    /// Waits until the tables say what was played; how long that took, `None` where they did not in time.
    async fn settle(&mut self, db: &DatabaseConnection, truth: &Played) -> Result<Option<Duration>> {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            self.programs.check()?;
            let found = Found::read(db, &self.directory.media()).await?;
            if truth.differences(&found.played).is_empty() {
                return Ok(Some(begun.elapsed()));
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// Stops and removes everything but what is there to look at; whether that went well.
    async fn clear(&mut self, args: &Args, is_right: bool) -> bool {
        let mut failures = Vec::new();
        failures.extend(self.programs.stop().await.err());
        if self.has_queues {
            failures.extend(self.clear_queues().await.err());
        }
        if !args.keep {
            failures.extend(self.database.remove().await.err());
        }
        if is_right && !args.keep {
            self.directory.tidy();
        }
        for failure in &failures {
            output::complain(format_args!("rollcall: {}", in_one_line(failure)));
        }
        failures.is_empty()
    }

    async fn clear_queues(&self) -> Result<()> {
        self.delete_queues().await.context("cannot delete the demo's queues")
    }

    async fn delete_queues(&self) -> Result<()> {
        let settings = self.settings()?;
        Ok(Queue::open(&settings.queue, "rollcall demo")?.delete(&settings).await?)
    }

    fn settings(&self) -> Result<Settings> {
        Ok(serde_json::from_value(self.settings.clone())?)
    }

    fn report(&self, args: &Args, outcome: &Outcome) -> Result<()> {
        output::print(report::report(&outcome.found, &self.directory.media()))?;
        output::print(&outcome.summary)?;
        if args.keep {
            output::print(format_args!("Database: {}", self.database.url()))?;
            output::print(format_args!("Logs: {}", self.directory.logs().display()))?;
        }
        if outcome.differences.is_empty() {
            return output::print("What the tables say is what was played.");
        }
        output::print("\nWhat the tables say is not what was played:")?;
        for difference in outcome.differences.iter().take(SHOWN) {
            output::print(format_args!("  {difference}"))?;
        }
        if let Some(more @ 1..) = outcome.differences.len().checked_sub(SHOWN) {
            output::print(format_args!("  and {more} more"))?;
        }
        output::print(format_args!("What the programs said is in {}", self.directory.logs().display()))
    }

    /// What the programs said before it failed.
    fn show_logs(&self) {
        let tails = programs::tails(&self.directory.logs());
        if !tails.is_empty() {
            output::complain(tails);
        }
    }
}

async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

/// The class has just ended. Whole seconds, as webhooks tell times.
fn opened_at() -> Result<DateTime<Utc>> {
    let opened_at = Utc::now() - TimeDelta::seconds(class::LENGTH) - TimeDelta::minutes(1);
    Ok(opened_at.duration_trunc(TimeDelta::seconds(1))?)
}

fn recording(plan: &Plan) -> Recording {
    let room = &plan.class.rooms[0];
    Recording {
        title: room.title.clone(),
        room_created_at: room.created_at,
        ..Recording::new(&plan.class.record_id, &room.room_id, &room.sid, &plan.video)
    }
}

fn summary(plan: &Plan, took: Duration, settled: Option<Duration>) -> String {
    let class::Mishaps { twice, out_of_order, never_sent } = plan.class.mishaps;
    let settled = settled.map_or("never right".to_owned(), |settled| format!("right {} ms later", settled.as_millis()));
    format!(
        "Played {} webhooks in {:.1} s (--seed {}): {out_of_order} of them out of order, {twice} twice; {never_sent} more \
         were never sent.\nThe tables were {settled}.",
        plan.class.posts.len(),
        took.as_secs_f64(),
        plan.seed,
    )
}
