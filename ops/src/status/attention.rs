//! What needs a person, loudest first: each a sentence that names the thing and the way out.

use chrono::TimeDelta;

use super::PAUSED;
use super::ingress::Ingress;
use super::look::{Look, Process, Worker};
use crate::output::counted;
use crate::time::span;

/// How old the oldest event may be before it is asked whether the queue shrinks.
const OLD: TimeDelta = TimeDelta::seconds(30);
/// How long ago a webhook was refused that is worth a line.
const LATELY: TimeDelta = TimeDelta::minutes(10);

/// What needs a person in this look; `before` is an earlier one.
pub(super) fn of(look: &Look, before: &Look) -> Vec<String> {
    let mut lines: Vec<_> = look.unreachable.iter().map(|who| format!("Cannot look everywhere: {who}.")).collect();
    lines.extend(look.ingresses.iter().filter_map(cannot_take));
    for worker in &look.workers {
        lines.extend(idle(worker));
        lines.extend(worker.processes.iter().filter_map(|process| hindered(worker, process)));
        lines.extend(not_shrinking(look, worker, before));
    }
    lines.extend(look.ingresses.iter().filter_map(spooling));
    if let Some(unrouted @ 1..) = look.unrouted {
        lines.push(format!(
            "{} in the queue of what no binding wants (unrouted): somebody deleted a binding. Start any worker again, which \
             declares it, and move them with the broker's tools.",
            counted(unrouted, "event is", "events are")
        ));
    }
    if let Some(died @ 1..) = look.died_since_yesterday {
        let died = counted(died, "dead letter", "dead letters");
        lines.push(format!("{died} since yesterday: see `rollcall dlq groups`."));
    }
    lines.extend(look.ingresses.iter().filter_map(|ingress| refusing(look, ingress)));
    lines
}

fn cannot_take(ingress: &Ingress) -> Option<String> {
    let shown = ingress.shown.as_ref().filter(|shown| !shown.ready)?;
    Some(format!("The ingress at {} takes no webhooks: {}.", ingress.address, shown.readiness))
}

/// Nobody works, or nobody shall.
fn idle(worker: &Worker) -> Option<String> {
    let name = &worker.worker;
    let waiting = worker.waits.map_or(0, |waits| waits.waiting + waits.retrying + waits.suspects);
    let waits = match waiting {
        0 => "nothing waits for it yet".to_owned(),
        1 => "1 event waits for it".to_owned(),
        count => format!("{count} events wait for it"),
    };
    if let Some(paused) = &worker.paused {
        let reason = paused.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        return Some(format!("{name} is paused by {}{reason}; {waits}. To go on: rollcall resume {name}", paused.by));
    }
    let consumed = worker.waits.and_then(|waits| waits.consumers).is_some_and(|consumers| consumers > 0);
    let runs = worker.processes.iter().any(|process| process.is_alive);
    (!runs && !consumed).then(|| format!("No worker {name} runs; {waits}. Start one: rollcall-worker {name}"))
}

/// A process that cannot work, or that is gone without a word.
fn hindered(worker: &Worker, process: &Process) -> Option<String> {
    let Process { host, pid, state, .. } = process;
    let another = worker.processes.iter().any(|other| other.is_alive && other.started_at > process.started_at);
    match (process.is_alive, state.as_str()) {
        (true, "taking" | PAUSED) => None,
        (true, obstacle) => Some(format!("{} on {host} (process {pid}) cannot work: {obstacle}.", worker.worker)),
        (false, _) if another => None,
        (false, _) => Some(format!(
            "{} on {host} (process {pid}) has not told for {}: it was killed, or cannot reach the database.",
            worker.worker,
            span(chrono::Utc::now() - process.seen_at)
        )),
    }
}

fn not_shrinking(look: &Look, worker: &Worker, before: &Look) -> Option<String> {
    let then = before.workers.iter().find(|then| then.worker == worker.worker)?.waits?.waiting;
    let now = worker.waits?.waiting;
    let oldest = worker.oldest_received_at.map(|at| look.at - at).filter(|age| *age > OLD)?;
    let works = worker.paused.is_none() && worker.processes.iter().any(|process| process.is_alive);
    (works && now > 0 && now >= then).then(|| {
        format!(
            "{}: {} and do not get fewer, the oldest for {}: start another rollcall-worker {0}, or look into its log.",
            worker.worker,
            counted(now, "event waits", "events wait"),
            span(oldest)
        )
    })
}

fn spooling(ingress: &Ingress) -> Option<String> {
    let spool = ingress.shown.as_ref()?.spool.as_ref().filter(|spool| spool.is_open)?;
    Some(format!(
        "The broker does not take events from the ingress at {}: {} on its disk.",
        ingress.address,
        counted(spool.events, "waits", "wait")
    ))
}

fn refusing(look: &Look, ingress: &Ingress) -> Option<String> {
    let latest = ingress.shown.as_ref()?.rejections.first().filter(|latest| look.at - latest.at < LATELY)?;
    Some(format!(
        "The ingress at {} refused a webhook {} ago, from {}: {}. See http://{0}/rejections",
        ingress.address,
        span(look.at - latest.at),
        latest.address,
        latest.reason.replace('_', " ")
    ))
}
