//! `rollcall demo`: plays a class against the real pipeline, and says what came of it.
//!
//! A [stand-in](rollcall_ops::standin) is the PlugNMeet server; the ingress and the workers are the real programs, as
//! processes of their own, on a database and queues of this run's own. What ends up in the tables is held against
//! what was played.
//!
//! - [`class`]: the script, and the truth that follows from it;
//! - [`stage`]: the run: sets everything up, plays, waits, reports, and leaves nothing behind;
//! - [`programs`], [`database`], [`directory`]: what it sets up;
//! - [`tables`]: what the tables say, and how that differs from the truth;
//! - [`report`], [`progress`]: what people see.

mod class;
mod database;
mod directory;
mod programs;
mod progress;
mod report;
mod stage;
mod tables;
mod video;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use rollcall_shared::config::{SecretUrl, Settings};

use self::stage::Stage;

/// Play a class against the real pipeline, and say what came of it.
///
/// A class of 45 minutes with a teacher, 30 students, a breakout room and a recording is played in a few seconds
/// against rollcall-ingress and a rollcall-worker each for attendance, rooms and recordings, on a real broker and
/// database. People drop and come in again; webhooks come late, out of order, twice or not at all.
///
/// It makes a database and queues of its own and removes them at the end. Exits with 1 where the tables do not say
/// what was played.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The broker, amqp://user:password@host/vhost; without it, the setting queue.url.
    #[arg(long, value_name = "URL", value_parser = SecretUrl::parse)]
    queue: Option<SecretUrl>,
    /// A database server, postgres://user:password@host/name, whose user may create databases; or sqlite: for a file
    /// in the demo's directory. Without it, the setting database.url.
    #[arg(long, value_name = "URL", value_parser = SecretUrl::parse)]
    database: Option<SecretUrl>,
    /// The directory for the recording, the thumbnail and, when something fails, the logs; the next run in it clears
    /// them away. [default: rollcall-demo-1000 among the temporary files, for the user with the id 1000]
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

/// The broker and the database server.
struct Services {
    queue: SecretUrl,
    database: SecretUrl,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let services = args.services(config)?;
    Stage::new(&args, services).await?.run(&args).await
}

impl Args {
    /// Those of the command line; what it does not name, of the settings.
    fn services(&self, config: Option<&Path>) -> Result<Services> {
        if let (Some(queue), Some(database)) = (&self.queue, &self.database) {
            return Ok(Services { queue: queue.clone(), database: database.clone() });
        }
        let settings = Settings::load(config).context("without --queue and --database the settings are needed")?;
        let database = self.database.clone().unwrap_or(settings.database.url);
        Ok(Services { queue: self.queue.clone().unwrap_or(settings.queue.url), database })
    }
}
