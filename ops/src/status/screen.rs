//! How a snapshot is shown: one screen, what needs a person first.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use console::style;
use rollcall_shared::display::in_line;

use super::ingress::{Ingress, Shown};
use super::seconds;
use super::snapshot::{Process, Recordings, Snapshot, Waits, Worker};
use crate::output::counted;
use crate::table::Table;
use crate::time::span;

/// How many recordings are shown by name.
const RECORDINGS: usize = 5;
/// What nobody tells.
const UNKNOWN: &str = "–";

/// The whole page.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let at = snapshot.at;
    let mut rest = vec![workers(snapshot)];
    rest.extend(processes(snapshot));
    rest.extend(snapshot.ingresses.iter().map(|ingress| of_ingress(at, ingress)));
    rest.extend(snapshot.recordings.as_ref().and_then(|recordings| of_recordings(at, recordings)));
    let rest: Vec<_> =
        rest.into_iter().map(|lines| lines.iter().map(|line| in_line(line)).collect::<Vec<_>>().join("\n")).collect();
    let head = format!("Rollcall, {}", at.format("%Y-%m-%d %H:%M:%S UTC"));
    format!("{head}\n\n{}\n\n{}", attention(&snapshot.attention), rest.join("\n\n"))
}

/// As much of a page as a terminal of so many rows and columns has room for: what needs a person comes first, so the end is
/// left out.
pub(super) fn cut(page: &str, rows: usize, columns: usize) -> String {
    let height = |line: &str| console::measure_text_width(line).div_ceil(columns.max(1)).max(1);
    let lines: Vec<_> = page.lines().collect();
    if lines.iter().map(|line| height(line)).sum::<usize>() <= rows {
        return page.to_owned();
    }
    let mut left = rows.saturating_sub(1);
    let fits = |line: &&&str| {
        let fits = height(line) <= left;
        left = left.saturating_sub(height(line));
        fits
    };
    let shown: Vec<_> = lines.iter().take_while(fits).copied().collect();
    let more = counted((lines.len() - shown.len()) as u64, "line more", "lines more");
    [shown, vec![&format!("… {more}")]].concat().join("\n")
}

fn attention(lines: &[String]) -> String {
    if lines.is_empty() {
        return format!("{} Nothing needs you.", style("✓").green());
    }
    let loud = lines.iter().map(|line| format!("{} {}", style("!").red().bold(), style(in_line(line)).bold()));
    loud.collect::<Vec<_>>().join("\n")
}

/// Where there is no room, the last column is left out: what came back from a process that went away is rare.
fn workers(snapshot: &Snapshot) -> Vec<String> {
    let heads = ["worker", "waiting", "in flight", "retry", "dead", "in/s", "out/s", "oldest", "processes", "suspect"];
    let mut table = Table::new(&heads);
    for head in ["waiting", "in flight", "retry", "dead", "in/s", "out/s", "suspect"] {
        table = table.numbers(head);
    }
    for worker in &snapshot.workers {
        table.row(row(snapshot.at, worker));
    }
    lines(&table.fitted())
}

fn row(at: DateTime<Utc>, worker: &Worker) -> [String; 10] {
    let waits = |of: fn(&Waits) -> u64| shown(worker.waits.as_ref().map(of));
    let dead_in_queue = worker.waits.map_or(0, |waits| waits.dead_in_queue);
    let alive = worker.processes.as_ref().map(|_| worker.alive().count());
    let processes = match (&worker.paused, alive) {
        (Some(_), Some(alive)) => format!("{alive}, paused"),
        (_, alive) => shown(alive),
    };
    [
        worker.worker.clone(),
        waits(|waits| waits.waiting),
        shown(worker.in_flight),
        waits(|waits| waits.retrying),
        shown(worker.dead.map(|dead| dead + dead_in_queue)),
        shown(worker.rate_in.map(rate)),
        shown(worker.rate_out.map(rate)),
        shown(worker.oldest_received_at.map(|oldest| span(at - oldest))),
        processes,
        waits(|waits| waits.suspects),
    ]
}

fn shown(value: Option<impl ToString>) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), |value| value.to_string())
}

fn processes(snapshot: &Snapshot) -> Option<Vec<String>> {
    let mut table = Table::new(&["process of", "host", "pid", "up", "in flight", "out/s", "state"]);
    for head in ["pid", "in flight", "out/s"] {
        table = table.numbers(head);
    }
    let mut any = false;
    for worker in &snapshot.workers {
        for process in worker.processes.iter().flatten() {
            any = true;
            table.row(process_row(worker, process));
        }
    }
    any.then(|| lines(&table.fitted()))
}

fn process_row(worker: &Worker, process: &Process) -> [String; 7] {
    let state = if process.is_alive {
        process.state.clone()
    } else {
        format!("silent for {}", span(seconds(process.silent_seconds)))
    };
    [
        worker.worker.clone(),
        process.host.clone(),
        process.pid.to_string(),
        span(seconds(process.running_seconds)),
        process.in_flight.to_string(),
        rate(process.rate),
        state,
    ]
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn of_ingress(at: DateTime<Utc>, ingress: &Ingress) -> Vec<String> {
    let Some(shown) = &ingress.shown else {
        let why = ingress.unreachable.as_deref().unwrap_or_default();
        return vec![format!(
            "ingress {}: {why}. If it runs elsewhere, say where: --ingress HOST:PORT (its ingress.admin_address)",
            ingress.address
        )];
    };
    let mut lines = vec![format!(
        "ingress {}: {}; {}, {} accepted since it started",
        ingress.address,
        shown.readiness,
        counted(shown.connections, "connection", "connections"),
        shown.accepted.values().sum::<u64>(),
    )];
    if let Some(spool) = &shown.spool {
        let mut line = format!("  spool: {}", counted(spool.events, "event", "events"));
        if spool.events > 0 {
            let _ =
                write!(line, ", the oldest for {}, {} KiB", span(seconds(spool.oldest_seconds)), spool.bytes / 1024);
        }
        lines.push(line);
    }
    lines.extend(refused(at, shown));
    lines
}

fn refused(at: DateTime<Utc>, shown: &Shown) -> Vec<String> {
    if shown.rejected.is_empty() {
        return Vec::new();
    }
    let reasons = shown.rejected.iter().map(|(reason, count)| format!("{count} {}", reason.replace('_', " ")));
    let mut lines = vec![format!("  refused: {}", reasons.collect::<Vec<_>>().join(", "))];
    lines.extend(shown.rejections.iter().map(|rejection| {
        let times = if rejection.count > 1 { format!(", {} times", rejection.count) } else { String::new() };
        format!(
            "    {} ago from {}: {}, {} bytes{times}",
            span(at - rejection.at),
            rejection.address,
            rejection.reason.replace('_', " "),
            rejection.size
        )
    }));
    lines
}

fn of_recordings(at: DateTime<Utc>, recordings: &Recordings) -> Option<Vec<String>> {
    let Recordings { in_progress, waiting } = recordings;
    if in_progress.is_empty() && *waiting == 0 {
        return None;
    }
    let count = in_progress.len();
    let mut lines = vec![format!("recordings: {count} being fetched, {waiting} waiting for their next try")];
    lines.extend(in_progress.iter().take(RECORDINGS).map(|recording| {
        let title = recording.title.as_deref().map(|title| format!(": {title}")).unwrap_or_default();
        format!("  {} of {}, for {}{title}", recording.record_id, recording.source, span(at - recording.since))
    }));
    if count > RECORDINGS {
        lines.push(format!("  and {} more", count - RECORDINGS));
    }
    Some(lines)
}

fn rate(rate: f64) -> String {
    if rate >= 100.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::Recording;
    use super::super::snapshot::tests::well;
    use super::*;

    #[test]
    fn what_nobody_tells_is_a_dash() {
        let mut snapshot = well();
        let worker = &mut snapshot.workers[0];
        (worker.waits, worker.processes, worker.in_flight, worker.dead) = (None, None, None, None);
        (worker.rate_in, worker.rate_out) = (None, None);
        let page = render(&snapshot);
        let line = page.lines().find(|line| line.starts_with("attendance")).unwrap();
        let cells: Vec<_> = line.split_whitespace().collect();
        assert_eq!(cells, [&["attendance"], [UNKNOWN; 9].as_slice()].concat());
    }

    #[test]
    fn nothing_that_somebody_wrote_is_an_order_to_the_terminal() {
        let mut snapshot = well();
        snapshot.attention = vec!["attendance is paused by \x1b[2Jsara".into()];
        let recording = Recording {
            source: "main".into(),
            record_id: "r".into(),
            title: Some("\x1b]0;owned\x07\nAlgebra\u{9b}2J".into()),
            since: snapshot.at,
            error: None,
        };
        snapshot.recordings = Some(Recordings { in_progress: vec![recording], waiting: 0 });
        let page = render(&snapshot);
        assert!(!page.chars().any(|character| character.is_control() && character != '\n'), "{page:?}");
        assert!(page.contains("  r of main, for 0s: \u{fffd}]0;owned\u{fffd} Algebra\u{fffd}2J"), "{page:?}");
    }

    #[test]
    fn a_page_that_is_too_long_keeps_its_beginning() {
        let page = "a\nb\nc\nd";
        assert_eq!(cut(page, 4, 80), page);
        assert_eq!(cut(page, 3, 80), "a\nb\n… 2 lines more");
        assert_eq!(cut("a\nbbbbb\nc", 4, 4), "a\nbbbbb\nc");
        assert_eq!(cut("a\nbbbbb\nc", 3, 4), "a\n… 2 lines more");
        assert_eq!(cut("a\nb", 0, 0), "… 2 lines more");
    }
}
