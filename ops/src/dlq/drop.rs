//! `rollcall dlq drop`: dead letters of which nothing more shall become.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::{By, Filter, State, change, find};
use serde_json::json;

use super::left_out::LeftOut;
use super::select::SelectSome;
use super::{Tool, ask_if_many, letters, none};
use crate::output;
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
    let changed = count.saturating_sub(dropped);
    let mut json = json!({ "dropped": dropped, "not_dropped": changed + left_out.there() });
    left_out.add_to(&mut json);
    if !tool.printed_json(&json)? {
        tell(tool, &filter, dropped, changed).await?;
    }
    left_out.tell();
    Ok(if left_out.has_missing() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn tell(tool: &Tool, filter: &Filter, dropped: u64, changed: u64) -> Result<()> {
    if dropped > 0 {
        output::print(format_args!(
            "{} dropped; `rollcall dlq restore` with the same ids or options takes it back",
            letters(dropped)
        ))?;
    } else {
        output::print(format_args!("{}: nothing was dropped", none(tool, filter).await?))?;
    }
    if changed > 0 {
        output::print(format_args!("{} not: somebody has changed them meanwhile", letters(changed)))?;
    }
    Ok(())
}
