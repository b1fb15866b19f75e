//! `rollcall dlq restore`: takes a drop back.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::{By, State, change, find};

use super::left_out::LeftOut;
use super::outcome::Outcome;
use super::select::SelectSome;
use super::{Tool, ask_if_many, letters};
use crate::progress::Progress;
use crate::who::Who;

/// Take a drop back: the dead letters are dead again, and can be replayed.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq restore 17
  rollcall dlq restore --room test --reason 'it was a real room'
  rollcall dlq restore --all")]
pub(super) struct Args {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Do not ask, even where they are more than 100.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    select: SelectSome,
}

pub(super) async fn run(tool: &Tool, args: Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dropped, &[])?;
    let left_out = LeftOut::of(tool, &filter).await?;
    let count = find::count(&tool.db, &filter).await?;
    ask_if_many(count, args.yes, &format!("{} will be restored.", letters(count)))?;
    let by = By { name: args.who.name(), reason: args.reason };
    let progress = Progress::new("restoring", count);
    let restored = change::restore_all(&tool.db, &filter, &by, |more| progress.add(more)).await?;
    std::mem::drop(progress);
    let outcome = Outcome {
        done: "restored",
        hint: "`rollcall dlq replay` with the same ids or options sends them back",
        found: count,
        changed: restored,
    };
    outcome.tell(tool, &filter, &left_out).await
}
