//! `rollcall dlq list`: dead letters, the latest failure first.

use std::process::ExitCode;

use anyhow::Result;
use chrono::{DateTime, Utc};
use rollcall_shared::dead_letters::find::{self, Listed};
use rollcall_shared::dead_letters::{Filter, State};
use serde::Serialize;

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

/// A dead letter, for programs.
#[derive(Debug, Serialize)]
struct Shown {
    id: i64,
    state: String,
    worker: String,
    event: String,
    source: String,
    room_id: Option<String>,
    user_id: Option<String>,
    kind: String,
    cause: String,
    error: String,
    attempts: i32,
    first_failed_at: DateTime<Utc>,
    last_failed_at: DateTime<Utc>,
    replays: i32,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead);
    let found = find::list(&tool.db, &filter, args.limit).await?;
    let shown = found.len() as u64;
    let all = if shown < args.limit { shown } else { find::count(&tool.db, &filter).await? };
    let more = all.saturating_sub(shown);
    if tool.json {
        let found: Vec<_> = found.into_iter().map(Shown::from).collect();
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
    let one_state = filter.states.len() == 1;
    let heads = ["ID", "FAILED", "WORKER", "EVENT", "ROOM", "USER", "CAUSE", "ERROR"];
    let mut table = if one_state {
        Table::new(&heads)
    } else {
        Table::new(&["ID", "STATE", "FAILED", "WORKER", "EVENT", "ROOM", "USER", "CAUSE", "ERROR"])
    }
    .numbers("ID");
    for letter in found {
        let Listed { id, state, last_failed_at, worker, event, room_id, user_id, cause, error, .. } = letter;
        let (id, failed) = (id.to_string(), when(last_failed_at));
        let (room, user) = (room_id.unwrap_or_default(), user_id.unwrap_or_default());
        if one_state {
            table.row([id, failed, worker, event, room, user, cause, error]);
        } else {
            table.row([id, state, failed, worker, event, room, user, cause, error]);
        }
    }
    table
}

impl From<Listed> for Shown {
    fn from(letter: Listed) -> Self {
        Self {
            id: letter.id,
            state: letter.state,
            worker: letter.worker,
            event: letter.event,
            source: letter.source,
            room_id: letter.room_id,
            user_id: letter.user_id,
            kind: letter.kind,
            cause: letter.cause,
            error: letter.error,
            attempts: letter.attempts,
            first_failed_at: letter.first_failed_at,
            last_failed_at: letter.last_failed_at,
            replays: letter.replays,
        }
    }
}
