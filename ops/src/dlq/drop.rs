//! `rollcall dlq drop`: dead letters of which nothing more shall become.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::{By, State, change, find};

use super::left_out::LeftOut;
use super::outcome::Outcome;
use super::select::SelectSome;
use super::{Tool, ask_if_many, letters};
use crate::progress::Progress;
use crate::who::Who;

/// Say of dead letters that nothing more shall become of them, and why.
///
/// They stay in the database for as long as `dead_letters.keep` says (90 days unless it is set), and `restore` takes it back
/// until then.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq drop 17 18 --reason 'a test room'
  rollcall dlq drop --room test --reason 'a test room'
  rollcall dlq list --state dropped")]
pub(super) struct Args {
    /// Why, for the history.
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    reason: String,
    #[command(flatten)]
    who: Who,
    /// Do not ask, even where they are more than 100.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    select: SelectSome,
}

pub(super) async fn run(tool: &Tool, args: Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead, &[State::Replaying])?;
    let left_out = LeftOut::of(tool, &filter).await?;
    let count = find::count(&tool.db, &filter).await?;
    ask_if_many(count, args.yes, &format!("{} will be dropped.", letters(count)))?;
    let by = By { name: args.who.name(), reason: Some(args.reason) };
    let progress = Progress::new("dropping", count);
    let dropped = change::drop_all(&tool.db, &filter, &by, |more| progress.add(more)).await?;
    std::mem::drop(progress);
    let outcome = Outcome {
        done: "dropped",
        hint: "`rollcall dlq restore` with the same ids or options takes it back",
        found: count,
        changed: dropped,
    };
    outcome.tell(tool, &filter, &left_out).await
}
