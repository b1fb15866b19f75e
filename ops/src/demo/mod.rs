//! `rollcall demo`: plays a class against the real pipeline, and says what came of it.
//!
//! A [`StandIn`] is the PlugNMeet server; the ingress and the workers are the real programs, as processes of their own, on a
//! database and queues of this run's own. What ends up in the tables is held against what was played ([`class`]).

mod class;
mod database;
mod directory;
mod programs;
mod progress;
mod report;
mod tables;
mod video;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use futures_util::{FutureExt, future};
use rollcall_ops::standin::{self, Sender, StandIn};
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::queue;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;
use uuid::Uuid;

use self::class::{Class, Post};
use self::database::OwnDatabase;
use self::directory::Directory;
use self::programs::{Binaries, Programs, free_address};
use self::progress::Progress;
use self::tables::{Found, Played};
use crate::output;

/// How long the workers may take after the last webhook until the tables are as they should be.
const DEADLINE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(100);
/// Where the ingress takes PlugNMeet's webhooks.
const WEBHOOK_PATH: &str = "/webhooks/plugnmeet";
/// How many differences are shown.
const SHOWN: usize = 30;

/// Play a class against the real pipeline, and say what came of it.
///
/// A class of 45 minutes with a teacher, 30 students, a breakout room and a recording is played in a few seconds against
/// rollcall-ingress and a rollcall-worker each for attendance, rooms and recordings, on a real broker and database. People
/// drop and come in again; webhooks come late, out of order, twice or not at all.
///
/// It makes a database and queues of its own and removes them at the end. Exits with 1 where the tables do not say what was
/// played.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The broker, amqp://user:password@host/vhost; without it, the setting queue.url.
    #[arg(long, value_name = "URL", value_parser = SecretUrl::parse)]
    queue: Option<SecretUrl>,
    /// A database server, postgres://user:password@host/name, whose user may create databases; or sqlite: for a file in the
    /// demo's directory. Without it, the setting database.url.
    #[arg(long, value_name = "URL", value_parser = SecretUrl::parse)]
    database: Option<SecretUrl>,
    /// The directory for the recording, the thumbnail and, when something fails, the logs; the next run in it clears them
    /// away. [default: rollcall-demo-<your user id> among the temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Keep the logs and the database as well.
    #[arg(long)]
    keep: bool,
    /// How many times faster than the clock the class is played.
    #[arg(long, value_name = "N", default_value_t = 450, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    speed: u32,
    /// Play the class of this number again. [default: another class each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let binaries = Binaries::find()?;
    let (queue, database) = match (&args.queue, &args.database) {
        (Some(queue), Some(database)) => (queue.clone(), database.clone()),
        (queue, database) => {
            let settings = Settings::load(config).context("without --queue and --database the settings are needed")?;
            let database = database.as_ref().map_or_else(|| settings.database_url(), Ok)?;
            (queue.as_ref().unwrap_or(&settings.queue.url).clone(), database.clone())
        }
    };
    let id = Uuid::new_v4().simple().to_string()[..8].to_owned();
    let directory = Directory::open(args.dir.as_deref())?;
    let database = OwnDatabase::beside(&database, &id, &directory.work())?;
    let secret = SecretString::from(Uuid::new_v4().simple().to_string());
    let server = StandIn::start("demo-key", &secret).await.context("cannot start the stand-in for PlugNMeet")?;
    let mut stage = Stage {
        settings: settings(&id, &queue, &database, &directory, &server, &secret)?,
        binaries,
        directory,
        database,
        server,
        programs: Programs::none(),
        progress: Progress::new(),
    };
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(stage.play(&args)).catch_unwind() => outcome,
        signal = interrupted() => Ok(signal.and_then(|()| bail!("interrupted"))),
    };
    stage.clear(&args, outcome).await
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

/// The settings of the pipeline's programs.
fn settings(
    id: &str,
    queue: &SecretUrl,
    database: &OwnDatabase,
    directory: &Directory,
    server: &StandIn,
    secret: &SecretString,
) -> Result<Value> {
    let storage = Url::from_directory_path(directory.media()).ok().context("a directory makes a URL")?;
    // Nobody waits for minutes here, as the defaults do.
    let retry = "1s,2s,4s,8s";
    Ok(json!({
        "queue": { "url": queue.expose(), "prefix": format!("demo-{id}") },
        "database": { "url": database.url().expose() },
        "storage": { "url": storage },
        "ingress": { "address": free_address()?, "admin_address": free_address()?, "paths": WEBHOOK_PATH },
        "plugnmeet": {
            tables::SOURCE: { "url": server.url(), "api_key": "demo-key", "api_secret": secret.expose_secret() },
        },
        "attendance": { "retry": retry },
        "rooms": { "retry": retry },
        "recordings": { "retry": retry },
        "log": { "format": "text" },
    }))
}

/// Everything that a run has made, and that has to go again.
struct Stage {
    settings: Value,
    binaries: Binaries,
    directory: Directory,
    database: OwnDatabase,
    server: StandIn,
    programs: Programs,
    progress: Progress,
}

/// How a run that came to its end went.
struct Outcome {
    found: Found,
    differences: Vec<String>,
    summary: String,
}

impl Stage {
    async fn play(&mut self, args: &Args) -> Result<Outcome> {
        let media = self.directory.media();
        self.progress.step("making a database");
        self.database.create().await?;
        self.progress.step("making a video, and starting the ingress and three workers");
        let video = video::make(&self.directory.work()).await?;
        self.programs.start(&self.binaries, &self.settings, &self.directory.logs()).await?;

        let db = self.database.connect().await?;
        tables::announce_class(&db).await.context("cannot announce the class in the tables")?;
        let seed = args.seed.unwrap_or_else(|| rand::random_range(1..1_000_000));
        let class = Class::write(opened_at()?, seed);
        let played = played(&class, &video).await?;

        let begun = Instant::now();
        self.play_class(&class, &video, args.speed).await?;
        let took = begun.elapsed();
        self.progress.step("waiting until the tables say what was played");
        let settled = self.settle(&db, &played).await?;

        // What is under way is finished by this, so nothing changes the tables any more.
        self.progress.step("stopping the ingress and the workers");
        self.programs.stop().await?;
        let found = Found::read(&db, &media).await?;
        db.close().await?;
        let differences = played.differences(&found.played);
        let mishaps = &class.mishaps;
        let summary = format!(
            "Played {} webhooks in {:.1} s (class {seed}): {} out of order, {} sent twice, {} never sent.\n\
             The tables were right {:.1} s after the last one.",
            class.posts.len(),
            took.as_secs_f64(),
            mishaps.out_of_order,
            mishaps.twice,
            mishaps.never_sent,
            settled.as_secs_f64(),
        );
        Ok(Outcome { found, differences, summary })
    }

    /// Each room's webhooks go one by one over a connection of their own, as from a real server.
    async fn play_class(&mut self, class: &Class, video: &Path, speed: u32) -> Result<()> {
        let address = &self.settings["ingress"]["address"];
        let url = Url::parse(&format!("http://{}{WEBHOOK_PATH}", address.as_str().context("an address is text")?))?;
        self.progress.step_of_posts("playing 45 minutes of class", class.posts.len());
        let begun = Instant::now();
        let rooms = class.rooms.iter().enumerate().map(async |(room, _)| {
            let mut sender = self.server.sender(url.clone())?;
            for post in class.posts.iter().filter(|post| post.room == room) {
                sleep_until(begun + post.after / speed).await;
                if post.webhook.event == "recording_proceeded" {
                    self.server.add_recording(recording(class, video));
                }
                self.post(&mut sender, post).await?;
            }
            Ok(())
        });
        future::try_join_all(rooms).await.map(|_| ())
    }

    async fn post(&self, sender: &mut Sender, post: &Post) -> Result<()> {
        let sent = sender.send(&post.webhook).await;
        self.progress.posted(post.after);
        if sent.is_accepted() {
            return Ok(());
        }
        let answer = sent.answer.map_or_else(|error| error, |status| status.to_string());
        bail!("the ingress did not take a {} after {} attempts: {answer}", post.webhook.event, sent.attempts)
    }

    /// Waits until the tables say what was played; how long that took. At the deadline it is over all the same.
    async fn settle(&mut self, db: &sea_orm::DatabaseConnection, played: &Played) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            self.programs.check()?;
            let found = Found::read(db, &self.directory.media()).await?;
            if played.differences(&found.played).is_empty() || begun.elapsed() > DEADLINE {
                return Ok(begun.elapsed());
            }
            sleep(POLL).await;
        }
    }

    /// Reports, and leaves nothing behind, whatever happened.
    async fn clear(mut self, args: &Args, outcome: std::thread::Result<Result<Outcome>>) -> Result<ExitCode> {
        let is_right = matches!(&outcome, Ok(Ok(outcome)) if outcome.differences.is_empty());
        self.progress.finish(is_right);
        let mut failures = Vec::new();
        failures.extend(self.programs.stop().await.err());
        failures.extend(self.clear_queues().await.err());
        if !args.keep {
            failures.extend(self.database.drop().await.err());
        }
        if is_right && !args.keep {
            self.directory.tidy();
        } else if !is_right {
            output::complain(programs::tails(&self.directory.logs()));
        }
        for failure in &failures {
            output::complain(format_args!("rollcall: {failure:#}"));
        }
        let outcome = outcome.unwrap_or_else(|panic| resume_unwind(panic))?;
        self.report(args, &outcome)?;
        Ok(if is_right && failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn clear_queues(&self) -> Result<()> {
        let settings = serde_json::from_value(self.settings.clone())?;
        queue::delete_all(&settings).await.context("cannot delete the demo's queues")
    }

    fn report(&self, args: &Args, outcome: &Outcome) -> Result<()> {
        output::print(format_args!("\n{}", report::report(&outcome.found, &self.directory.media())))?;
        output::print(&outcome.summary)?;
        if args.keep {
            output::print(format_args!("The database is {}", self.database.url()))?;
            output::print(format_args!("The logs are in {}", self.directory.logs().display()))?;
        }
        if outcome.differences.is_empty() {
            return output::print("What the tables say is what was played.");
        }
        output::print(format_args!(
            "\nThe tables do not say what was played: {} differences",
            outcome.differences.len()
        ))?;
        for difference in outcome.differences.iter().take(SHOWN) {
            output::print(format_args!("  {difference}"))?;
        }
        output::print(format_args!("What the programs said is in {}", self.directory.path().display()))
    }
}

/// The class has just ended. Whole seconds, as webhooks tell times.
fn opened_at() -> Result<DateTime<Utc>> {
    let opened_at = Utc::now() - TimeDelta::seconds(class::LENGTH) - TimeDelta::minutes(1);
    Ok(opened_at.duration_trunc(TimeDelta::seconds(1))?)
}

/// What the tables should say in the end.
async fn played(class: &Class, video: &Path) -> Result<Played> {
    let bytes = tokio::fs::read(video).await?;
    let sha256 = tables::sha256(&bytes);
    let recording = tables::Recording {
        status: "ready".into(),
        kind: Some("video".into()),
        title: Some(class::TITLE.into()),
        file_size: bytes.len().try_into().ok(),
        whole_seconds: Some(video::SECONDS),
        resolution: Some(video::RESOLUTION),
        sha256: Some(sha256.clone()),
        sha256_of_file: Some(sha256),
        has_thumbnail: true,
    };
    Ok(Played { sessions: class.truth.clone(), recordings: [(class.record_id.clone(), recording)].into() })
}

fn recording(class: &Class, video: &Path) -> standin::Recording {
    let room = &class.rooms[0];
    standin::Recording {
        title: room.title.clone(),
        room_created_at: room.created_at,
        ..standin::Recording::new(&class.record_id, &room.room_id, &room.sid, video)
    }
}
