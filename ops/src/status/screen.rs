//! How a look is shown: one screen, what needs a person first.

use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};
use console::style;

use super::ingress::{Ingress, Shown};
use super::look::{Look, Process, Recordings, Worker};
use crate::output::counted;
use crate::table::Table;
use crate::time::span;

/// How many recordings are shown by name.
const RECORDINGS: usize = 5;
/// What nobody tells.
const UNKNOWN: &str = "–";

/// The whole screen.
pub(super) fn render(look: &Look) -> String {
    let mut parts = vec![format!("Rollcall, {}", look.at.format("%Y-%m-%d %H:%M:%S UTC"))];
    parts.push(attention(&look.attention));
    parts.push(workers(look));
    if let Some(processes) = processes(look) {
        parts.push(processes);
    }
    parts.extend(look.ingresses.iter().map(|ingress| of_ingress(look.at, ingress)));
    if let Some(recordings) = look.recordings.as_ref().and_then(|recordings| of_recordings(look.at, recordings)) {
        parts.push(recordings);
    }
    parts.join("\n\n")
}

fn attention(lines: &[String]) -> String {
    if lines.is_empty() {
        return format!("{} Nothing needs you.", style("✓").green());
    }
    let loud = lines.iter().map(|line| format!("{} {}", style("!").red().bold(), style(line).bold()));
    loud.collect::<Vec<_>>().join("\n")
}

fn workers(look: &Look) -> String {
    let heads =
        ["worker", "waiting", "in flight", "retrying", "suspect", "dead", "in/s", "out/s", "oldest", "processes"];
    let mut table = Table::new(&heads);
    for head in &heads[1..8] {
        table = table.numbers(head);
    }
    for worker in &look.workers {
        table.row(row(look.at, worker));
    }
    table.fitted()
}

fn row(at: DateTime<Utc>, worker: &Worker) -> [String; 10] {
    let waits = |of: fn(&super::look::Waits) -> u64| {
        worker.waits.as_ref().map_or(UNKNOWN.into(), |waits| of(waits).to_string())
    };
    let dead = worker.dead + worker.waits.map_or(0, |waits| waits.dead_in_queue);
    let alive = worker.processes.iter().filter(|process| process.is_alive).count();
    let processes = match (&worker.paused, alive) {
        (Some(_), _) => format!("{alive}, paused"),
        (None, _) => alive.to_string(),
    };
    [
        worker.worker.clone(),
        waits(|waits| waits.waiting),
        worker.in_flight.to_string(),
        waits(|waits| waits.retrying),
        waits(|waits| waits.suspects),
        dead.to_string(),
        worker.rate_in.map_or(UNKNOWN.into(), rate),
        rate(worker.rate_out),
        worker.oldest_received_at.map_or(UNKNOWN.into(), |oldest| span(at - oldest)),
        processes,
    ]
}

fn processes(look: &Look) -> Option<String> {
    let mut table = Table::new(&["process of", "host", "pid", "up", "in flight", "out/s", "state"]);
    for head in ["pid", "in flight", "out/s"] {
        table = table.numbers(head);
    }
    let mut any = false;
    for worker in &look.workers {
        for process in &worker.processes {
            any = true;
            table.row(process_row(look.at, worker, process));
        }
    }
    any.then(|| table.fitted())
}

fn process_row(at: DateTime<Utc>, worker: &Worker, process: &Process) -> [String; 7] {
    let state =
        if process.is_alive { process.state.clone() } else { format!("silent for {}", span(at - process.seen_at)) };
    [
        worker.worker.clone(),
        process.host.clone(),
        process.pid.to_string(),
        span(at - process.started_at),
        process.in_flight.to_string(),
        rate(process.rate),
        state,
    ]
}

fn of_ingress(at: DateTime<Utc>, ingress: &Ingress) -> String {
    let Some(shown) = &ingress.shown else {
        let why = ingress.unreachable.as_deref().unwrap_or_default();
        return format!(
            "ingress {}: {why}. If it runs elsewhere, say where: --ingress HOST:PORT (its ingress.admin_address)",
            ingress.address
        );
    };
    let mut text = format!(
        "ingress {}: {}; {}, {} accepted since it started",
        ingress.address,
        shown.readiness,
        counted(shown.connections, "connection", "connections"),
        shown.accepted.values().sum::<u64>(),
    );
    if let Some(spool) = &shown.spool {
        let oldest = TimeDelta::seconds(spool.oldest_seconds.round() as i64);
        let _ = write!(text, "\n  spool: {}", counted(spool.events, "event", "events"));
        if spool.events > 0 {
            let _ = write!(text, ", the oldest for {}, {} KiB", span(oldest), spool.bytes / 1024);
        }
    }
    let _ = write!(text, "{}", refused(at, shown));
    text
}

fn refused(at: DateTime<Utc>, shown: &Shown) -> String {
    if shown.rejected.is_empty() {
        return String::new();
    }
    let reasons = shown.rejected.iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")));
    let mut text = format!("\n  refused: {}", reasons.collect::<Vec<_>>().join(", "));
    for rejection in &shown.rejections {
        let _ = write!(
            text,
            "\n    {} ago from {}: {}, {} bytes",
            span(at - rejection.at),
            rejection.address,
            rejection.reason.replace('_', " "),
            rejection.size
        );
    }
    text
}

fn of_recordings(at: DateTime<Utc>, recordings: &Recordings) -> Option<String> {
    let Recordings { in_progress, waiting } = recordings;
    if in_progress.is_empty() && *waiting == 0 {
        return None;
    }
    let mut text = format!("recordings: {} being fetched, {waiting} waiting for their next try", in_progress.len());
    for recording in in_progress.iter().take(RECORDINGS) {
        let title = recording.title.as_deref().map(|title| format!(": {title}")).unwrap_or_default();
        let since = span(at - recording.since);
        let _ = write!(text, "\n  {} of {}, for {since}{title}", recording.record_id, recording.source);
    }
    if in_progress.len() > RECORDINGS {
        let _ = write!(text, "\n  and {} more", in_progress.len() - RECORDINGS);
    }
    Some(text)
}

fn rate(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}
