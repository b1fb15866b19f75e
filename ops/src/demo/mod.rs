//! `rollcall demo`: plays a class against the real pipeline, and says what came of it.
//!
//! A [stand-in](rollcall_ops::standin) is the PlugNMeet server; the ingress and the workers are the real programs, on a
//! database and queues of this run's own: `rollcall up` on files, or with RabbitMQ each as a process of its own. What ends up in
//! the tables is held against what was played.
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

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::config::SecretUrl;

use self::stage::Stage;

/// Play a class against the real pipeline, and say what came of it.
///
/// A class of 45 minutes with a teacher, 30 students, a breakout room and a recording is played in a few seconds. People drop
/// and come in again; webhooks come late, out of order, twice or not at all. It needs nothing but ffmpeg: `rollcall up` runs on
/// files in the demo's directory. With --queue amqp://… it plays against rollcall-ingress and a rollcall-worker each for
/// attendance, rooms and recordings, on that broker.
///
/// It makes a database and queues of its own and removes them at the end. Exits with 1 where the tables do not say
/// what was played.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A broker, amqp://user:password@host/vhost. [default: a file in the demo's directory]
    #[arg(long, value_name = "URL", value_parser = SecretUrl::parse)]
    queue: Option<SecretUrl>,
    /// A database server, postgres://user:password@host/name, whose user may create databases. [default: a file in the
    /// demo's directory]
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

pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    Stage::new(&args).await?.run(&args).await
}
