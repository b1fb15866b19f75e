//! Why what was sent back may wait for long: its worker does not run, or rests.

use rollcall_shared::dead_letters::replay;
use rollcall_shared::event::AnyWorker;
use rollcall_shared::oversight::{self, Process};
use rollcall_shared::store::entity::worker_pause::Model as Pause;
use sea_orm::{DatabaseConnection, DbErr};

use crate::table::exactly;

/// What keeps the rest of a run from being applied, or from being told that it died again; a line each, with the way out.
///
/// # Errors
/// The database.
pub(super) async fn of_run(db: &DatabaseConnection, run: &str) -> Result<Vec<String>, DbErr> {
    let awaited = replay::awaited(db, run).await?;
    let pauses = oversight::pauses(db).await?;
    let processes = oversight::processes(db).await?;
    let alive: Vec<_> = processes.into_iter().filter(Process::is_alive).collect();
    let storing = (!awaited.is_empty()).then_some(AnyWorker::DeadLetters.as_str());
    let workers = awaited.iter().map(String::as_str).chain(storing);
    Ok(workers.filter_map(|worker| of_worker(worker, &pauses, &alive)).collect())
}

fn of_worker(worker: &str, pauses: &[Pause], alive: &[Process]) -> Option<String> {
    if let Some(pause) = pauses.iter().find(|pause| pause.worker == worker) {
        let (by, at) = (&pause.paused_by, exactly(pause.paused_at));
        let why = pause.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
        return Some(format!("{worker} is paused by {by} since {at}{why}; to go on: rollcall resume {worker}"));
    }
    if alive.iter().any(|process| process.worker == worker) {
        return None;
    }
    let task = if worker == AnyWorker::DeadLetters.as_str() { "what dies again is not told" } else { "they wait" };
    Some(format!("no worker {worker} runs, so {task}; to start it: rollcall-worker {worker}, or rollcall up for all"))
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn a_worker_that_rests_or_does_not_run_is_named_with_the_way_out() {
        let process = Process {
            worker: "rooms".into(),
            host: "h".into(),
            pid: 1,
            version: "0".into(),
            state: "taking".into(),
            in_flight: 0,
            settled: 0,
            rate: 0.0,
            oldest_received_at: None,
            running_seconds: 1.0,
            silent_seconds: 1.0,
        };
        let pause = Pause {
            worker: "attendance".into(),
            paused_at: Utc::now(),
            paused_by: "sara".into(),
            reason: Some("exam".into()),
        };
        let of = |worker| of_worker(worker, std::slice::from_ref(&pause), std::slice::from_ref(&process));
        assert_eq!(of("rooms"), None);
        let paused = of("attendance").unwrap();
        assert!(paused.starts_with("attendance is paused by sara since 2"), "{paused}");
        assert!(paused.ends_with(" (exam); to go on: rollcall resume attendance"), "{paused}");
        assert!(of("recordings").unwrap().starts_with("no worker recordings runs, so they wait;"));
        assert!(of("dead-letters").unwrap().contains("so what dies again is not told"));
    }
}
