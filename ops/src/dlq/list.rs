//! `rollcall dlq list`: dead letters, the latest failure first.

use std::process::ExitCode;

use anyhow::Result;
use rollcall_shared::dead_letters::find::{self, Listed};
use rollcall_shared::dead_letters::{Filter, State};

use super::select::Select;
use super::{Tool, letters, none};
use crate::output;
use crate::table::{Table, when};

/// List dead letters, the latest failure first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq list
  rollcall dlq list --room algebra --since 3days --limit 200
  rollcall dlq list --cause body-incomplete --json | jq '.dead_letters[].id'")]
pub(super) struct Args {
    /// How many.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    limit: u64,
    #[command(flatten)]
    select: Select,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead);
    let found = find::list(&tool.db, &filter, args.limit).await?;
    let shown = found.len() as u64;
    let all = if shown < args.limit { shown } else { find::count(&tool.db, &filter).await? };
    let more = all.saturating_sub(shown);
    if tool.json {
        tool.printed_json(&serde_json::json!({ "dead_letters": found, "more": more }))?;
    } else if found.is_empty() {
        output::print(none(tool, &filter).await?)?;
    } else {
        output::print(table(found, &filter).fitted())?;
        if more > 0 {
            output::print(format_args!("and {} more: --limit shows more of them", letters(more)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The state is told where there may be more than one.
fn table(found: Vec<Listed>, filter: &Filter) -> Table {
    let heads = ["ID", "STATE", "FAILED", "WORKER", "EVENT", "ROOM", "USER", "CAUSE", "ERROR"];
    let mut table = Table::new(&heads).numbers("ID").dispensable(&["FAILED", "EVENT"]);
    if filter.states.len() == 1 {
        table = table.without("STATE");
    }
    for letter in found {
        let Listed { id, state, last_failed_at, worker, event, room_id, user_id, cause, error, .. } = letter;
        let (room, user) = (room_id.unwrap_or_default(), user_id.unwrap_or_default());
        table.row([id.to_string(), state, when(last_failed_at), worker, event, room, user, cause, error]);
    }
    table
}
