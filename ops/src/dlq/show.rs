//! `rollcall dlq show`: everything about one dead letter.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, Result};
use rollcall_shared::dead_letters::find::{self, Letter};
use rollcall_shared::dead_letters::transfer::Record;
use rollcall_shared::display::{self, in_line};
use rollcall_shared::store::entity::{dead_letter, dead_letter_change, dead_letter_failure};
use serde_json::Value;

use super::{Tool, difference};
use crate::output;
use crate::table::{Table, exactly};

/// Show everything about one dead letter: its error, its body, each time that it died, and what was done with it.
///
/// With --json it is what `export` writes.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq show 17
  rollcall dlq show 17 --json | jq -r .body")]
pub(super) struct Args {
    /// The dead letter.
    #[arg(value_name = "ID")]
    id: i64,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let letter = find::letter(&tool.db, args.id).await?;
    let letter = letter.with_context(|| format!("there is no dead letter {}", args.id))?;
    if tool.json {
        tool.printed_json(&Record::from(letter))?;
    } else {
        output::print(page(letter).trim_end())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn page(letter: Letter) -> String {
    let Letter { row, failures, changes } = letter;
    let mut page = format!("Dead letter {}\n", row.id);
    for (name, value) in facts(&row) {
        let _ = writeln!(page, "  {name:13} {}", in_line(&value));
    }
    let mut section = |title: &str, text: &str| {
        let _ = write!(page, "\n{title}\n");
        for line in text.lines() {
            let _ = writeln!(page, "  {line}");
        }
    };
    section("Error", &row.error);
    section("Failures", &of_failures(failures));
    if !changes.is_empty() {
        section("History", &of_changes(changes));
    }
    section("Headers", &of_headers(&row.headers));
    section("Body", &pretty(&row.body));
    if let Some(original) = &row.original_body {
        section("What was edited", &edits(original, &row.body));
        section("Original body", &pretty(original));
    }
    page
}

fn facts(row: &dead_letter::Model) -> Vec<(&'static str, String)> {
    let host = row.host.as_ref().map_or(String::new(), |host| format!(" on {host}"));
    let mut facts = vec![
        ("state", row.state.clone()),
        ("worker", row.worker.clone()),
        ("event", format!("{} of {}", row.event, row.source)),
        ("cause", format!("{} ({})", row.cause, row.kind)),
        ("first failed", exactly(row.first_failed_at)),
        ("last failed", format!("{}, attempt {}{host}", exactly(row.last_failed_at), row.attempts)),
        ("received", exactly(row.received_at)),
        ("message id", row.message_id.clone()),
    ];
    let mut add = |name, value: Option<String>| facts.extend(value.map(|value| (name, value)));
    add("event id", row.event_id.clone());
    add("room", row.room_id.clone());
    add("person", row.user_id.clone());
    add("traceparent", row.traceparent.clone());
    add("replayed", row.replayed_at.map(|at| replayed(row, exactly(at))));
    add("applied", row.applied_at.map(exactly));
    facts
}

fn replayed(row: &dead_letter::Model, at: String) -> String {
    let by = row.replayed_by.as_deref().unwrap_or("nobody known");
    let run = row.replay_run.as_ref().map_or(String::new(), |run| format!(" in run {run}"));
    format!("{} time{}, last {at} by {by}{run}", row.replays, if row.replays == 1 { "" } else { "s" })
}

fn of_failures(failures: Vec<dead_letter_failure::Model>) -> String {
    let mut table = Table::new(&["WHEN", "REPLAY", "KIND", "CAUSE", "ATTEMPTS", "HOST", "ERROR"]);
    for failure in failures {
        let dead_letter_failure::Model { failed_at, replay, kind, cause, attempts, host, error, .. } = failure;
        let replay = if replay == 0 { "none yet".to_owned() } else { replay.to_string() };
        table.row([exactly(failed_at), replay, kind, cause, attempts.to_string(), host.unwrap_or_default(), error]);
    }
    table.whole()
}

fn of_changes(changes: Vec<dead_letter_change::Model>) -> String {
    let mut table = Table::new(&["WHEN", "WHO", "WHAT", "WHY"]);
    for changed in changes {
        let dead_letter_change::Model { changed_at, changed_by, change, reason, .. } = changed;
        table.row([exactly(changed_at), changed_by, change, reason.unwrap_or_default()]);
    }
    table.whole()
}

fn of_headers(headers: &str) -> String {
    let Ok(Value::Object(headers)) = serde_json::from_str(headers) else { return headers.to_owned() };
    let line = |(name, value): (String, Value)| match value {
        Value::String(text) => format!("{name}: {text}"),
        value => format!("{name}: {value}"),
    };
    headers.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// A body for people: JSON over many lines, in which orders for a terminal are spelt out; else as it is.
pub(super) fn pretty(body: &[u8]) -> String {
    let json = serde_json::from_slice::<Value>(body).ok();
    let pretty = json.and_then(|json| serde_json::to_string_pretty(&json).ok());
    pretty.map(|json| display::json(&json)).unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

fn edits(original: &[u8], body: &[u8]) -> String {
    match (serde_json::from_slice(original), serde_json::from_slice(body)) {
        (Ok(original), Ok(body)) => difference::between(&original, &body).join("\n"),
        _ => "the one or the other is no JSON".to_owned(),
    }
}
