//! `rollcall person`: what the law gives people a right to.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Subcommand;
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::By;
use rollcall_shared::erasure::erase::{self, Attendance, Erasure, Found};
use sea_orm::DatabaseConnection;
use serde_json::{Value, json};

use crate::output::{self, counted};
use crate::who::{self, Who};
use crate::{confirm, migrate};

/// How many recordings are named.
const MOST_NAMED: usize = 50;

/// One person, in everything that Rollcall keeps.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Erase(Erase),
}

/// Erase a person from every table: attendance, dead letters, and staff of courses.
///
/// Attendance is deleted, or with --pseudonymise stays as that of nobody who is known. Dead letters about the person are deleted in
/// either case. A hash of the id stays, so that nothing that happened until now brings the person back: no event that waits, comes
/// late or is sent again, no import, no rebuild. Who joins a class after that is recorded as ever. It is done whole or not at all, and
/// may be done again.
///
/// What it does not reach is told: recordings of classes that the person was in, exports, backups, logs, and the LMS and the PlugNMeet
/// server themselves.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall person erase 4711 --dry-run
  rollcall person erase 4711 --reason 'request of 26 November'
  rollcall person erase sip_+4912345 --source main --pseudonymise --reason 'left the school'")]
struct Erase {
    /// The person's id, as the LMS gave it to PlugNMeet: live_session_user.user_id.
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    /// On this server (plugnmeet.<name>); may be given again. Needed where there are several: an id may be somebody else's there.
    #[arg(long = "source", value_name = "NAME")]
    sources: Vec<String>,
    /// Keep the attendance, under a made-up id and without the name.
    #[arg(long)]
    pseudonymise: bool,
    /// Only say what there is.
    #[arg(long, conflicts_with_all = ["reason", "yes"])]
    dry_run: bool,
    /// Why, without the person's name or id: it is kept.
    #[arg(long, value_name = "TEXT", value_parser = who::reason, required_unless_present = "dry_run")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON, for programs.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let Action::Erase(args) = args.action;
    let settings = Settings::load(config)?;
    let db = migrate::migrated(&settings.database.url, 1).await?;
    let sources = sources(&db, &settings, &args.sources).await?;
    let attendance = if args.pseudonymise { Attendance::Pseudonymise } else { Attendance::Delete };
    let erasure = Erasure { user_id: args.id.clone(), sources, attendance };
    let found = if args.dry_run { erasure.look(&db).await? } else { erased(&db, &erasure, &args).await? };
    if args.json {
        output::print_json(&as_json(&erasure, &found, args.dry_run))?;
    } else {
        tell(&erasure, &found, args.dry_run)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Erases, after a question.
async fn erased(db: &DatabaseConnection, erasure: &Erasure, args: &Erase) -> Result<Found> {
    if !args.yes {
        let found = erasure.look(db).await?;
        let (id, of) = (&erasure.user_id, erasure.sources.join(", "));
        confirm::or_stop(&format!("{id} of {of} will be erased: {}. That cannot be undone.", words(&found)))?;
    }
    let by = By { name: args.who.name(), reason: args.reason.clone() };
    Ok(erasure.run(db, &by).await?)
}

/// Those that were said; or the one that there is, in the settings or in the tables.
async fn sources(db: &DatabaseConnection, settings: &Settings, said: &[String]) -> Result<Vec<String>> {
    let mut known = erase::sources(db).await?;
    known.extend(settings.plugnmeet.keys().cloned());
    known.sort_unstable();
    known.dedup();
    if let Some(unknown) = said.iter().find(|source| !known.contains(source)) {
        bail!("no server is called {unknown}: there are {}", known.join(", "));
    }
    match (said, known.as_slice()) {
        ([], []) => bail!("there is no server in the settings, and nothing of one in the tables"),
        ([], [_]) => Ok(known),
        ([], _) => bail!(
            "on which server? The same id may be another person's elsewhere: say --source, once or more, of {}",
            known.join(", ")
        ),
        (said, _) => Ok(said.to_vec()),
    }
}

fn words(found: &Found) -> String {
    let mut words = vec![
        counted(found.sessions, "session", "sessions"),
        counted(found.connections, "connection", "connections"),
        counted(found.dead_letters, "dead letter", "dead letters"),
    ];
    let edited = found.edited_dead_letters;
    words.extend((edited > 0).then(|| counted(edited, "dead letter that was edited", "dead letters that were edited")));
    words.extend((found.staff > 0).then(|| counted(found.staff, "course as staff", "courses as staff")));
    words.join(", ")
}

fn tell(erasure: &Erasure, found: &Found, dry_run: bool) -> Result<()> {
    let Erasure { user_id, sources, attendance } = erasure;
    let done = match (dry_run, attendance) {
        (true, _) => "Found",
        (false, Attendance::Delete) => "Erased",
        (false, Attendance::Pseudonymise) => "Erased, with the attendance kept under a made-up id",
    };
    output::print(format_args!("{done}: {} of {user_id} of {}.", words(found), sources.join(", ")))?;
    if found.is_nothing() {
        output::print("Nothing is there under this id: is it the one that the LMS gives to PlugNMeet?")?;
    }
    if !found.recordings.is_empty() {
        let count = counted(found.recordings.len() as u64, "recording", "recordings");
        output::print(format_args!("Not touched: {count} of these sessions, with whoever else was there:"))?;
        for recording in found.recordings.iter().take(MOST_NAMED) {
            let key = recording.file_key.as_deref().unwrap_or("no file yet");
            output::print(format_args!("  live_session_recording {}: {key}", recording.id))?;
        }
        let more = found.recordings.len().saturating_sub(MOST_NAMED);
        if more > 0 {
            output::print(format_args!("  and {more} more: --json names them all"))?;
        }
    }
    output::print(
        "Not reached: files that `rollcall dlq export` has written, backups, logs, copies that others have made of the tables, \
         the LMS, and the PlugNMeet server.",
    )
}

fn as_json(erasure: &Erasure, found: &Found, dry_run: bool) -> Value {
    let recordings: Vec<_> =
        found.recordings.iter().map(|one| json!({ "id": one.id, "file_key": one.file_key })).collect();
    json!({
        "erased": !dry_run,
        "user_id": erasure.user_id,
        "sources": erasure.sources,
        "pseudonymised": erasure.attendance == Attendance::Pseudonymise,
        "sessions": found.sessions,
        "connections": found.connections,
        "dead_letters": found.dead_letters,
        "edited_dead_letters": found.edited_dead_letters,
        "staff": found.staff,
        "recordings_not_touched": recordings,
    })
}
