//! `rollcall doctor`: tries out everything that Rollcall needs, and says what is wrong and what to do.
//!
//! A check is a function that gives [`Finding`]s; each has its own time, and none waits for another's outcome unless it could
//! not be made without it. Nothing is changed, but that the broker's queues are declared, as any program does.
//!
//! - `finding`: what a check says, for people and for machines;
//! - `user`: who asks;
//! - `privacy`: who else can read what is on this machine's disk;
//! - `queue`, `database`, `dead_letters`, `keeping`, `recordings` (storage, ffprobe, ffmpeg), `server` (PlugNMeet's API), `webhook` (the ingress): the
//!   checks, by what they look at.

mod database;
mod dead_letters;
mod finding;
mod keeping;
mod privacy;
mod queue;
mod recordings;
mod server;
mod user;
mod webhook;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use rollcall_shared::config::{Advice, Settings};
use tokio::time::timeout;
use url::Url;

use self::finding::Finding;
use crate::output;

/// How long one check may take: longer than anything in it waits by itself.
const LIMIT: Duration = Duration::from_secs(25);
/// How many checks are made at once.
const AT_ONCE: usize = 16;
/// How little room on a disk is worth a word, in bytes.
const LITTLE_ROOM: u64 = 1 << 30;

/// Try out everything that Rollcall needs, and say what is wrong and what to do.
///
/// The settings, who can read the files, the queue, the database, dead letters, the storage, ffprobe and ffmpeg, each PlugNMeet server, and the ingress, which gets a
/// signed event that it ignores. One line each: ✓ is well, ✗ is not, ! deserves a look. Run it where Rollcall runs, as its user,
/// in its folder.
///
/// Exits with 1 if there is a ✗.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON document: a list of {check, status (ok, warning or failed), found, todo}.
    #[arg(long)]
    json: bool,
    /// Where to post the test event: the address that PlugNMeet posts to. [default: this machine's ingress by the settings]
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let mut findings = Vec::new();
    match Settings::load(config) {
        Ok(settings) => {
            tell(&mut findings, &args, vec![settings_read(config)])?;
            tell(&mut findings, &args, settings.advice().into_iter().map(advice).collect())?;
            tell(&mut findings, &args, user::check(&settings).into_iter().collect())?;
            tell(&mut findings, &args, privacy::check(&settings, config))?;
            // In order, each as soon as it and all before it are known.
            let mut made = stream::iter(checks(&settings, &args)).buffered(AT_ONCE);
            while let Some(found) = made.next().await {
                tell(&mut findings, &args, found)?;
            }
        }
        Err(error) => {
            let todo = "put it right; what follows can only be checked then";
            tell(&mut findings, &args, vec![Finding::failed("settings", error, todo)])?;
            let not_made = |check| Finding::not_made(check, "the settings cannot be read");
            let others = [
                "files",
                "queue",
                "database",
                "dead letters",
                "keeping",
                "storage",
                "ffprobe",
                "ffmpeg",
                "plugnmeet",
                "webhook",
            ];
            tell(&mut findings, &args, others.map(not_made).to_vec())?;
        }
    }
    if args.json {
        output::print_json(&findings)?;
    }
    Ok(if findings.iter().any(Finding::is_failure) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Adds to what was found, and prints it unless all of it is printed in the end.
fn tell(findings: &mut Vec<Finding>, args: &Args, found: Vec<Finding>) -> Result<()> {
    if !args.json {
        found.iter().try_for_each(output::print)?;
    }
    findings.extend(found);
    Ok(())
}

/// All checks, in the order in which they are told.
fn checks<'a>(settings: &'a Settings, args: &'a Args) -> Vec<BoxFuture<'a, Vec<Finding>>> {
    let mut checks = vec![
        queue::check(settings).boxed(),
        in_time("database", database::check(settings)).boxed(),
        in_time("dead letters", dead_letters::check(settings)).boxed(),
        async { vec![keeping::check(settings)] }.boxed(),
        in_time("storage", recordings::storage(settings)).boxed(),
        in_time("ffprobe", recordings::ffprobe(settings)).boxed(),
        in_time("ffmpeg", recordings::ffmpeg(settings)).boxed(),
    ];
    if settings.plugnmeet.is_empty() {
        checks.push(async { server::none() }.boxed());
    }
    for (name, settings_of_server) in &settings.plugnmeet {
        checks.push(in_time(format!("plugnmeet {name}"), server::check(settings, name, settings_of_server)).boxed());
    }
    for (name, settings_of_server) in &settings.plugnmeet {
        let url = args.url.as_ref();
        checks
            .push(in_time(format!("webhook {name}"), webhook::check(settings, name, settings_of_server, url)).boxed());
    }
    checks
}

/// What comes of a check, or that nothing did.
async fn in_time(check: impl Into<String>, findings: impl Future<Output = Vec<Finding>>) -> Vec<Finding> {
    let silent = |_| {
        let found = format!("nothing has come of it within {} s", LIMIT.as_secs());
        let todo = "what it talks to is there and silent: frozen, overloaded, or behind a firewall that drops packets";
        vec![Finding::failed(check, found, todo)]
    };
    timeout(LIMIT, findings).await.unwrap_or_else(silent)
}

fn advice(advice: Advice) -> Finding {
    let Advice { setting, found, todo } = advice;
    Finding::warning("settings", format!("{setting}: {found}"), todo)
}

/// Which settings these are.
fn settings_read(config: Option<&Path>) -> Finding {
    let file = config.map_or_else(|| PathBuf::from("rollcall.toml"), Path::to_owned);
    let path = std::path::absolute(&file).unwrap_or(file);
    let file = match path.exists() {
        true => path.display().to_string(),
        false => format!("the defaults (there is no {})", path.display()),
    };
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("ROLLCALL__")).collect();
    names.sort_unstable();
    Finding::ok(
        "settings",
        match names.as_slice() {
            [] => file,
            names => format!("{file}, and of the environment {}", names.join(", ")),
        },
    )
}
