//! `rollcall dlq drop`: dead letters of which nothing more shall become.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::{By, State, change, find};

use super::select::SelectSome;
use super::{Tool, ask_if_many, letters};
use crate::output;
use crate::progress::Progress;
use crate::who::Who;

/// Say of dead letters that nothing more shall become of them, and why.
///
/// They stay in the database for a while (docs/operating.md says how long), and `restore` takes it back until then.
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
    let filter = args.select.filter(State::Dead)?;
    let count = find::count(&tool.db, &filter).await?;
    ask_if_many(count, args.yes, &format!("{} will be dropped.", letters(count)))?;
    let by = By { name: args.who.name(), reason: Some(args.reason) };
    let progress = Progress::new("dropping", count);
    let dropped = change::drop_all(&tool.db, &filter, &by, |more| progress.add(more)).await?;
    std::mem::drop(progress);
    let others = count.saturating_sub(dropped);
    if tool.printed_json(&serde_json::json!({ "dropped": dropped, "not_dropped": others }))? {
        return Ok(ExitCode::SUCCESS);
    }
    output::print(format_args!("{} dropped; `rollcall dlq restore` takes it back", letters(dropped)))?;
    if others > 0 {
        output::print(format_args!("{} not: they are dropped already, or applied", letters(others)))?;
    }
    Ok(ExitCode::SUCCESS)
}
