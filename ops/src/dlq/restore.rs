//! `rollcall dlq restore`: takes a drop back.

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
    let changed = count.saturating_sub(restored);
    let mut json = json!({ "restored": restored, "not_restored": changed + left_out.there() });
    left_out.add_to(&mut json);
    if !tool.printed_json(&json)? {
        tell(tool, &filter, restored, changed).await?;
    }
    left_out.tell();
    Ok(if left_out.has_missing() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn tell(tool: &Tool, filter: &Filter, restored: u64, changed: u64) -> Result<()> {
    if restored > 0 {
        output::print(format_args!(
            "{} restored; `rollcall dlq replay` with the same ids or options sends them back",
            letters(restored)
        ))?;
    } else {
        output::print(format_args!("{}: nothing was restored", none(tool, filter).await?))?;
    }
    if changed > 0 {
        output::print(format_args!("{} not: somebody has changed them meanwhile", letters(changed)))?;
    }
    Ok(())
}
