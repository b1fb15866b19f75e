//! `rollcall dlq`: dead letters, one module a subcommand.
//!
//! What they do is [`rollcall_shared::dead_letters`]; here is what they are asked for in and how they tell of it. [`select`] is
//! how all of them are told which dead letters, and [`left_out`] which of these they leave out; [`difference`] is how they show what
//! was edited, and [`hindrance`] why what was sent back waits.

mod difference;
mod drop;
mod edit;
mod export;
mod groups;
mod hindrance;
mod import;
mod left_out;
mod list;
mod note;
mod outcome;
mod replay;
mod restore;
mod select;
mod show;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::{Filter, find};
use sea_orm::DatabaseConnection;
use serde::Serialize;

use crate::{confirm, migrate, output};

/// A replay reads, marks and looks on at once.
const CONNECTIONS: u32 = 4;
/// More than this many are changed only after a question.
const MOST_UNASKED: u64 = 100;

/// Dead letters: events that no worker could apply. See why, mend it, send them back, and see that it worked.
///
/// An event that a worker gave up on is a dead letter. It stays in the database until somebody sends it back to its worker
/// (replay) or says that it shall not be (drop).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
How a replay goes:
  rollcall dlq groups                         what died, by worker and cause
  rollcall dlq list --cause plugnmeet-away    which they are
  rollcall dlq show 17                        everything about one: the error, the body, its history
      …mend what was wrong: bring the server back, correct a setting, or edit the letter…
  rollcall dlq replay --cause plugnmeet-away --dry-run
  rollcall dlq replay --cause plugnmeet-away --wait

Nothing is lost by trying: what dies again is here again, with both failures in its history, and what is applied twice
has the same effect as once.")]
pub(crate) struct Args {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Groups(groups::Args),
    List(list::Args),
    Show(show::Args),
    Replay(replay::Args),
    Edit(edit::Args),
    Drop(drop::Args),
    Restore(restore::Args),
    Note(note::Args),
    Export(export::Args),
    Import(import::Args),
}

/// What every subcommand has.
struct Tool {
    settings: Settings,
    db: DatabaseConnection,
    json: bool,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(config)?;
    let db = migrate::migrated(&settings.database.url, CONNECTIONS).await?;
    let tool = Tool { settings, db, json: args.json };
    match args.action {
        Action::Groups(args) => groups::run(&tool, &args).await,
        Action::List(args) => list::run(&tool, &args).await,
        Action::Show(args) => show::run(&tool, &args).await,
        Action::Replay(args) => replay::run(&tool, &args).await,
        Action::Edit(args) => edit::run(&tool, &args).await,
        Action::Drop(args) => drop::run(&tool, args).await,
        Action::Restore(args) => restore::run(&tool, args).await,
        Action::Note(args) => note::run(&tool, args).await,
        Action::Export(args) => export::run(&tool, &args).await,
        Action::Import(args) => import::run(&tool, args).await,
    }
}

impl Tool {
    /// Prints `value` as JSON if that is wanted; whether it was.
    fn printed_json(&self, value: &impl Serialize) -> Result<bool> {
        if self.json {
            output::print_json(value)?;
        }
        Ok(self.json)
    }
}

/// `1 dead letter`, `2 dead letters`
fn letters(count: u64) -> String {
    format!("{} dead letter{}", indicatif::HumanCount(count), if count == 1 { "" } else { "s" })
}

/// That there are none; of how many, where more was asked for than a state.
async fn none(tool: &Tool, filter: &Filter) -> Result<String> {
    let all = Filter { states: filter.states.clone(), ..Filter::default() };
    if !filter.ids.is_empty() {
        return Ok("none of these fit".to_owned());
    }
    let count = if *filter == all { 0 } else { find::count(&tool.db, &all).await? };
    Ok(match count {
        0 => "no dead letters".to_owned(),
        1 => "the one dead letter does not fit".to_owned(),
        count => format!("none of {} fit", letters(count)),
    })
}

/// Asks before more than a handful are changed: `what` says what will happen.
fn ask_if_many(count: u64, yes: bool, what: &str) -> Result<()> {
    if count > MOST_UNASKED && !yes { confirm::or_stop(what) } else { Ok(()) }
}
