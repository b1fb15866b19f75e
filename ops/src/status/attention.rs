//! What needs a person, loudest first: each a sentence that names the thing and the way out.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use rollcall_shared::event::WorkerName;
use rollcall_shared::oversight::{PAUSED, TAKING};

use super::ingress::Ingress;
use super::seconds;
use super::snapshot::{Process, Snapshot, Worker};
use crate::output::counted;
use crate::time::span;

/// How old the oldest event may become before somebody shall see why nothing is settled.
const OLD: TimeDelta = TimeDelta::minutes(5);
/// How long ago a webhook was refused that is worth a line.
const LATELY: TimeDelta = TimeDelta::minutes(10);

/// What needs a person now; `before` is the snapshot before this one, and `earlier` one from minutes ago, if there is one.
pub(super) fn of(now: &Snapshot, before: &Snapshot, earlier: Option<&Snapshot>) -> Vec<String> {
    let mut lines: Vec<_> = now.unreachable.iter().map(|who| format!("Cannot look everywhere: {who}.")).collect();
    lines.extend(now.ingresses.iter().filter_map(cannot_take));
    lines.extend(in_trouble(now));
    for worker in &now.workers {
        lines.extend(idle(worker));
        lines.extend(stuck(now, worker, before).or_else(|| growing(now, worker, earlier?)));
    }
    lines.extend(now.ingresses.iter().filter_map(spooling));
    if let Some(unrouted @ 1..) = now.unrouted {
        lines.push(format!(
            "{} in the queue of what no binding wants (unrouted): somebody deleted a binding. Start any worker again, which \
             declares it, and move them with the broker's tools.",
            counted(unrouted, "event is", "events are")
        ));
    }
    if let Some(died @ 1..) = now.died_since_yesterday {
        let died = counted(died, "dead letter", "dead letters");
        lines.push(format!("{died} since yesterday: see `rollcall dlq groups`."));
    }
    lines.extend(now.ingresses.iter().filter_map(|ingress| refusing(now, ingress)));
    lines
}

fn cannot_take(ingress: &Ingress) -> Option<String> {
    let shown = ingress.shown.as_ref().filter(|shown| !shown.ready)?;
    Some(format!("The ingress at {} takes no webhooks: {}.", ingress.address, shown.readiness))
}

/// What is wrong with a process.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trouble<'a> {
    /// It is gone without a word.
    Silent,
    /// It cannot work.
    Obstacle(&'a str),
}

impl Trouble<'_> {
    fn of<'a>(worker: &Worker, process: &'a Process) -> Option<Trouble<'a>> {
        let started_later = |other: &Process| other.running_seconds < process.running_seconds;
        match (process.is_alive, process.state.as_str()) {
            (true, TAKING | PAUSED) => None,
            (true, obstacle) => Some(Trouble::Obstacle(obstacle)),
            // It has a successor.
            (false, _) if worker.alive().any(started_later) => None,
            (false, _) => Some(Trouble::Silent),
        }
    }
}

/// Processes that cannot work, or that are gone: one line each, whichever of its workers that concerns.
fn in_trouble(now: &Snapshot) -> Vec<String> {
    let mut troubles: BTreeMap<_, Vec<(&Worker, &Process)>> = BTreeMap::new();
    for worker in &now.workers {
        for process in worker.processes.iter().flatten() {
            if let Some(trouble) = Trouble::of(worker, process) {
                troubles.entry((&process.host, process.pid, trouble)).or_default().push((worker, process));
            }
        }
    }
    let mut lines = Vec::new();
    for ((host, pid, trouble), concerned) in troubles {
        let names: Vec<_> = concerned.iter().map(|(worker, _)| worker.worker.as_str()).collect();
        let process = format!("Process {pid} on {host} ({})", names.join(", "));
        lines.push(match trouble {
            Trouble::Silent => format!("{process} {}", gone(&concerned)),
            Trouble::Obstacle(obstacle) => format!("{process} cannot work: {obstacle}."),
        });
    }
    lines
}

/// That a process is gone, and what waits for those of its workers that nobody else does the work of.
fn gone(concerned: &[(&Worker, &Process)]) -> String {
    let silent = concerned.iter().map(|(_, process)| process.silent_seconds).fold(f64::INFINITY, f64::min);
    let gone =
        format!("has sent no heartbeat for {}: it was killed, or cannot reach the database", span(seconds(silent)));
    let missed: Vec<_> = concerned.iter().map(|(worker, _)| worker).filter(|worker| !is_worked_for(worker)).collect();
    let waiting = missed.iter().filter_map(|worker| worker.waiting()).sum();
    match (missed.is_empty(), waiting) {
        (true, _) => format!("{gone}."),
        (false, 0) => format!("{gone}. Start it again."),
        (false, waiting) => format!("{gone}; {}. Start it again.", counted(waiting, "event waits", "events wait")),
    }
}

/// Whether somebody takes what comes for it, as the database or the broker tells.
fn is_worked_for(worker: &Worker) -> bool {
    let is_consumed = worker.waits.and_then(|waits| waits.consumers).is_some_and(|consumers| consumers > 0);
    is_consumed || worker.alive().next().is_some()
}

/// Nobody works, or nobody shall. A process that is gone has a line of its own.
fn idle(worker: &Worker) -> Option<String> {
    let name = &worker.worker;
    let waits = match worker.waiting() {
        None => String::new(),
        Some(0) => "; nothing waits for it yet".to_owned(),
        Some(1) => "; 1 event waits for it".to_owned(),
        Some(count) => format!("; {count} events wait for it"),
    };
    if let Some(paused) = &worker.paused {
        let reason = paused.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        return Some(format!("{name} is paused by {}{reason}{waits}. To go on: rollcall resume {name}", paused.by));
    }
    let has_none = worker.processes.as_ref().is_some_and(Vec::is_empty) && !is_worked_for(worker);
    has_none.then(|| format!("No worker {name} runs{waits}. Start one: rollcall-worker {name}"))
}

/// Its processes run, events wait, and none is settled.
fn stuck(now: &Snapshot, worker: &Worker, before: &Snapshot) -> Option<String> {
    let waiting = worker.waits?.waiting;
    let oldest = worker.oldest_received_at.map(|at| now.at - at).filter(|age| *age > OLD)?;
    let settled = |worker: &Worker| worker.alive().map(|process| process.settled).sum::<i64>();
    let settled_before = settled(before.workers.iter().find(|then| then.worker == worker.worker)?);
    let has_settled = worker.rate_out? > 0.0 || settled(worker) != settled_before;
    (shall_work(worker) && waiting > 0 && !has_settled && !is_fetching(now, worker)).then(|| {
        format!(
            "{}: {}, the oldest for {}, and of late none was settled: look into the log of rollcall-worker {0}.",
            worker.worker,
            counted(waiting, "event waits", "events wait"),
            span(oldest)
        )
    })
}

/// More wait than minutes ago.
fn growing(now: &Snapshot, worker: &Worker, earlier: &Snapshot) -> Option<String> {
    let waiting = worker.waits?.waiting;
    let then = earlier.workers.iter().find(|then| then.worker == worker.worker)?.waits?.waiting;
    (shall_work(worker) && waiting > then).then(|| {
        format!(
            "{}: {}, {} more than {} ago: start another rollcall-worker {0}, or look into its log.",
            worker.worker,
            counted(waiting, "event waits", "events wait"),
            waiting - then,
            span(now.at - earlier.at)
        )
    })
}

fn shall_work(worker: &Worker) -> bool {
    worker.paused.is_none() && worker.alive().next().is_some()
}

/// A recording may take longer than anybody should wait for any other event.
fn is_fetching(now: &Snapshot, worker: &Worker) -> bool {
    let is_under_way = now.recordings.as_ref().is_some_and(|recordings| !recordings.in_progress.is_empty());
    worker.worker == WorkerName::Recordings.as_str() && is_under_way
}

fn spooling(ingress: &Ingress) -> Option<String> {
    let spool = ingress.shown.as_ref()?.spool.as_ref().filter(|spool| spool.is_open)?;
    Some(format!(
        "The broker does not take events from the ingress at {}: {} on its disk.",
        ingress.address,
        counted(spool.events, "waits", "wait")
    ))
}

fn refusing(now: &Snapshot, ingress: &Ingress) -> Option<String> {
    let latest = ingress.shown.as_ref()?.rejections.first().filter(|latest| now.at - latest.at < LATELY)?;
    Some(format!(
        "The ingress at {} refused a webhook {} ago, from {}: {}. See http://{0}/rejections",
        ingress.address,
        span(now.at - latest.at),
        latest.address,
        latest.reason.replace('_', " ")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::ingress::{Shown, Spool};
    use super::super::snapshot::tests::{process, well};
    use super::super::snapshot::{Paused, Recording, Recordings, Waits};
    use super::*;

    fn alone(now: &Snapshot) -> Vec<String> {
        of(now, now, None)
    }

    fn waiting(worker: &mut Worker, waiting: u64) {
        worker.waits = Some(Waits { waiting, consumers: Some(0), ..Waits::default() });
    }

    fn ingress(change: impl FnOnce(&mut Shown)) -> Ingress {
        let mut shown = Shown {
            ready: true,
            readiness: "ready".into(),
            connections: 0,
            accepted: BTreeMap::new(),
            spool: None,
            rejected: BTreeMap::new(),
            rejections: Vec::new(),
        };
        change(&mut shown);
        Ingress { address: "here:9090".into(), unreachable: None, shown: Some(shown) }
    }

    #[test]
    fn where_all_is_well_nothing_is_said() {
        assert_eq!(alone(&well()), [""; 0]);
    }

    #[test]
    fn what_the_database_did_not_tell_is_not_said() {
        let mut now = well();
        for worker in &mut now.workers {
            worker.processes = None;
            waiting(worker, 7);
        }
        assert_eq!(alone(&now), [""; 0]);
    }

    #[test]
    fn what_waits_is_counted_only_where_the_queue_told() {
        let mut now = well();
        now.workers.truncate(1);
        now.workers[0].processes = Some(Vec::new());
        for (waits, text) in [(None, ""), (Some(0), "; nothing waits for it yet"), (Some(2), "; 2 events wait for it")]
        {
            now.workers[0].waits = waits.map(|waiting| Waits { waiting, ..Waits::default() });
            let line = format!("No worker attendance runs{text}. Start one: rollcall-worker attendance");
            assert_eq!(alone(&now), [line]);
        }
        // The broker knows better.
        now.workers[0].waits = Some(Waits { consumers: Some(1), ..Waits::default() });
        assert_eq!(alone(&now), [""; 0]);
        now.workers[0].waits = None;
        let at = now.at;
        now.workers[0].paused = Some(Paused { by: "sara".into(), at, reason: Some("the exam".into()) });
        assert_eq!(alone(&now), ["attendance is paused by sara (the exam). To go on: rollcall resume attendance"]);
    }

    #[test]
    fn a_process_that_was_killed_is_one_line_whatever_it_worked_for() {
        let mut now = well();
        for worker in &mut now.workers {
            worker.processes = Some(vec![Process { is_alive: false, silent_seconds: 40.0, ..process(7) }]);
            waiting(worker, 1);
        }
        let names = "attendance, rooms, recordings, dead-letters";
        let silent = "has sent no heartbeat for 40s: it was killed, or cannot reach the database";
        assert_eq!(alone(&now), [format!("Process 7 on vm ({names}) {silent}; 4 events wait. Start it again.")]);
        // Started before it, and alive; and started after it.
        for (running_seconds, lines) in [(90.0, 1), (10.0, 0)] {
            for worker in &mut now.workers {
                worker.processes.as_mut().unwrap().truncate(1);
                worker.processes.as_mut().unwrap().push(Process { running_seconds, ..process(8) });
            }
            let said = alone(&now);
            assert_eq!(said.len(), lines, "{said:?}");
            assert!(said.iter().all(|line| line.ends_with(&format!("({names}) {silent}."))), "{said:?}");
        }
    }

    #[test]
    fn a_process_that_cannot_work_is_one_line() {
        let mut now = well();
        for worker in &mut now.workers {
            worker.processes = Some(vec![Process { state: "no connection to the broker".into(), ..process(7) }]);
        }
        let line =
            "Process 7 on vm (attendance, rooms, recordings, dead-letters) cannot work: no connection to the broker.";
        assert_eq!(alone(&now), [line]);
    }

    #[test]
    fn what_waits_long_is_told_where_nothing_is_settled() {
        let mut now = well();
        now.workers.retain(|worker| worker.worker == "recordings");
        waiting(&mut now.workers[0], 40);
        now.workers[0].oldest_received_at = Some(now.at - TimeDelta::minutes(12));
        let line = "recordings: 40 events wait, the oldest for 12m 0s, and of late none was settled: look into the log of \
                    rollcall-worker recordings.";
        assert_eq!(alone(&now), [line]);

        let mut settling = now.clone();
        settling.workers[0].rate_out = Some(0.1);
        assert_eq!(alone(&settling), [""; 0]);
        let mut has_settled = now.clone();
        has_settled.workers[0].processes.as_mut().unwrap()[0].settled = 1;
        assert_eq!(of(&has_settled, &now, None), [""; 0]);
        let mut young = now.clone();
        young.workers[0].oldest_received_at = Some(now.at - TimeDelta::minutes(4));
        assert_eq!(alone(&young), [""; 0]);
        // Each takes longer than that.
        let recording = Recording {
            source: "main".into(),
            record_id: "r".into(),
            title: None,
            since: now.at - TimeDelta::minutes(11),
            error: None,
        };
        now.recordings = Some(Recordings { in_progress: vec![recording], waiting: 39 });
        assert_eq!(alone(&now), [""; 0]);
    }

    #[test]
    fn what_has_grown_for_minutes_is_told() {
        let mut earlier = well();
        earlier.at -= TimeDelta::minutes(3);
        waiting(&mut earlier.workers[0], 10);
        let mut now = well();
        now.at = earlier.at + TimeDelta::minutes(3);
        waiting(&mut now.workers[0], 50);
        let line = "attendance: 50 events wait, 40 more than 3m 0s ago: start another rollcall-worker attendance, or look into \
                    its log.";
        assert_eq!(of(&now, &now, Some(&earlier)), [line]);
        assert_eq!(alone(&now), [""; 0]);
        waiting(&mut now.workers[0], 10);
        assert_eq!(of(&now, &now, Some(&earlier)), [""; 0]);
    }

    #[test]
    fn what_an_ingress_and_the_broker_cannot_do_is_told() {
        let mut now = well();
        now.unrouted = Some(1);
        now.ingresses = vec![
            ingress(|shown| (shown.ready, shown.readiness) = (false, "the disk is full".into())),
            ingress(|shown| {
                shown.spool = Some(Spool { events: 3, oldest_seconds: 9.0, bytes: 99, is_open: true });
            }),
            ingress(|shown| shown.spool = Some(Spool { events: 4, oldest_seconds: 9.0, bytes: 99, is_open: false })),
        ];
        let said = alone(&now);
        assert_eq!(said.len(), 3, "{said:?}");
        assert_eq!(said[0], "The ingress at here:9090 takes no webhooks: the disk is full.");
        assert_eq!(said[1], "The broker does not take events from the ingress at here:9090: 3 wait on its disk.");
        assert!(said[2].starts_with("1 event is in the queue of what no binding wants (unrouted)"), "{said:?}");
    }
}
