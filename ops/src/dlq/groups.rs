//! `rollcall dlq groups`: dead letters by worker and cause.

use std::process::ExitCode;

use anyhow::Result;
use chrono::{DateTime, Utc};
use rollcall_shared::dead_letters::find::{self, Group};
use rollcall_shared::dead_letters::{Filter, State};
use serde::Serialize;

use super::select::Select;
use super::{Tool, letters, none};
use crate::output;
use crate::table::{Table, when};

/// Count dead letters by worker and cause: what went wrong, how often, since when.
///
/// The causes, and what to do about each, are in docs/operating.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq groups
  rollcall dlq groups --since 2h --worker recordings
  rollcall dlq groups --run 20261124-101502-3f9a      what became of a replay")]
pub(super) struct Args {
    #[command(flatten)]
    select: Select,
}

/// A group, for programs.
#[derive(Debug, Serialize)]
struct Shown {
    worker: String,
    cause: String,
    state: String,
    count: i64,
    first_failed_at: DateTime<Utc>,
    last_failed_at: DateTime<Utc>,
    kinds: Vec<String>,
    example: Example,
}

#[derive(Debug, Serialize)]
struct Example {
    id: i64,
    error: String,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead);
    let groups = find::groups(&tool.db, &filter).await?;
    if tool.json {
        let groups: Vec<_> = groups.into_iter().map(Shown::from).collect();
        tool.printed_json(&serde_json::json!({ "groups": groups }))?;
    } else if groups.is_empty() {
        output::print(none(tool, &filter).await?)?;
    } else {
        let count = groups.iter().map(|group| group.count.unsigned_abs()).sum();
        output::print(table(groups, &filter).fitted())?;
        output::print(format_args!("{} in all; `rollcall dlq show ID` shows one", letters(count)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The state is told where there may be more than one.
pub(super) fn table(groups: Vec<Group>, filter: &Filter) -> Table {
    let heads = ["COUNT", "STATE", "WORKER", "CAUSE", "KIND", "FIRST", "LAST", "EXAMPLE", "ERROR"];
    let mut table = Table::new(&heads).numbers("COUNT").numbers("EXAMPLE").dispensable(&["KIND", "FIRST", "LAST"]);
    if filter.states.len() == 1 {
        table = table.without("STATE");
    }
    for group in groups {
        let Group { worker, cause, state, count, first_failed_at, last_failed_at, kinds, example, error } = group;
        let (first, last) = (when(first_failed_at), when(last_failed_at));
        table.row([count.to_string(), state, worker, cause, kinds.join(","), first, last, example.to_string(), error]);
    }
    table
}

impl From<Group> for Shown {
    fn from(group: Group) -> Self {
        let Group { worker, cause, state, count, first_failed_at, last_failed_at, kinds, example, error } = group;
        let example = Example { id: example, error };
        Self { worker, cause, state, count, first_failed_at, last_failed_at, kinds, example }
    }
}
