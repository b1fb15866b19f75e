//! A worker reports to the database every few seconds that it runs and how it is doing, and asks whether it shall rest.
//!
//! Data comes from what the worker has [in hand](InHand) and goes to `worker_process`; `worker_pause` is read. `rollcall status`
//! shows the one, and `rollcall pause` fills the other.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use rollcall_shared::event::AnyWorker;
use rollcall_shared::oversight;
use rollcall_shared::queue::{InHand, host};
use rollcall_shared::store::entity::worker_pause as pause;
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use uuid::Uuid;

use crate::stall::Stall;

/// How often it asks whether it shall rest.
const ASK: Duration = Duration::from_secs(2);
/// How often it reports how it is doing, if nothing else changes: each time costs a file its sync.
const REPORT: Duration = Duration::from_secs(10);
/// How long the database may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the database may take when the program ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What one worker in one process reports of itself.
pub(crate) struct Heartbeat {
    worker: AnyWorker,
    id: String,
    db: DatabaseConnection,
    in_hand: InHand,
    obstacles: Obstacles,
    paused: watch::Sender<bool>,
    last: Option<Report>,
}

/// What was reported last.
struct Report {
    at: Instant,
    state: String,
    settled: u64,
}

impl Heartbeat {
    /// Of a worker that is about to start; and what says whether it shall rest.
    pub(crate) fn of(
        worker: AnyWorker,
        db: DatabaseConnection,
        in_hand: InHand,
        obstacles: Obstacles,
    ) -> (Self, watch::Receiver<bool>) {
        let (paused, rests) = watch::channel(false);
        let id = Uuid::now_v7().to_string();
        (Self { worker, id, db, in_hand, obstacles, paused, last: None }, rests)
    }

    /// Asks whether the worker shall rest. Where the database does not say, it is as it was.
    pub(crate) async fn ask(&self) {
        match timeout(LIMIT, oversight::pause_of(&self.db, self.worker)).await {
            Ok(Ok(row)) => self.rest(row),
            Ok(Err(error)) => debug!(%error, "whether to rest cannot be read; will try again"),
            Err(_) => debug!("whether to rest was not answered in time; will try again"),
        }
    }

    fn rest(&self, pause: Option<pause::Model>) {
        let changed =
            self.paused.send_if_modified(|paused| std::mem::replace(paused, pause.is_some()) != pause.is_some());
        match pause {
            Some(pause) if changed => {
                info!(worker = %self.worker, by = pause.paused_by, reason = pause.reason, "resting: somebody has paused this worker");
            }
            None if changed => info!(worker = %self.worker, "going on: the pause is over"),
            _ => {}
        }
    }

    /// Reports and asks until `stop`, and looks whether the worker stands still; then the process is forgotten.
    pub(crate) async fn run(mut self, mut stall: Stall, stop: CancellationToken) {
        let mut rounds = interval(ASK);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let round = async {
            loop {
                rounds.tick().await;
                self.ask().await;
                let is_paused = *self.paused.borrow();
                stall.look(is_paused).await;
                self.report_if_due().await;
            }
        };
        let _: Option<Infallible> = stop.run_until_cancelled(round).await;
        // What stays is seen to be old.
        let _ = timeout(FAREWELL, oversight::forget(&self.db, &self.id)).await;
    }

    async fn report_if_due(&mut self) {
        let state = self.state();
        if self.last.as_ref().is_some_and(|last| last.at.elapsed() < REPORT && last.state == state) {
            return;
        }
        match timeout(LIMIT, self.report(state)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, "a heartbeat could not be reported; will try again"),
            Err(_) => debug!("a heartbeat was not taken in time; will try again"),
        }
    }

    fn state(&self) -> String {
        match self.obstacles.check() {
            _ if *self.paused.borrow() => oversight::PAUSED.to_owned(),
            Ok(()) => oversight::TAKING.to_owned(),
            Err(obstacles) => obstacles,
        }
    }

    async fn report(&mut self, state: String) -> Result<(), DbErr> {
        let (now, settled) = (Instant::now(), self.in_hand.settled());
        let rate = self.last.as_ref().map_or(0.0, |last| {
            let seconds = (now - last.at).as_secs_f64().max(0.001);
            settled.saturating_sub(last.settled) as f64 / seconds
        });
        let heartbeat = oversight::Heartbeat {
            id: self.id.clone(),
            worker: self.worker,
            host: host(),
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            state: state.clone(),
            in_flight: self.in_hand.unsettled() as u64,
            settled,
            rate,
            oldest_received_at: self.in_hand.oldest(),
        };
        oversight::report(&self.db, heartbeat).await?;
        if self.last.is_none() {
            oversight::forget_the_old(&self.db).await?;
        }
        self.last = Some(Report { at: now, state, settled });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rollcall_shared::event::WorkerName;
    use rollcall_shared::store::Clock;
    use sea_orm::ConnectionTrait as _;

    use super::*;
    use crate::recordings::tests::Database;
    use crate::stall;

    #[tokio::test]
    async fn who_is_alive_is_the_databases_clock_to_say() {
        for database in Database::each().await {
            let db = &database.connection;
            let worker = AnyWorker::Events(WorkerName::Rooms);
            let (mut heartbeat, _) = Heartbeat::of(worker, db.clone(), InHand::default(), Obstacles::default());
            heartbeat.report(heartbeat.state()).await.unwrap();
            let process = oversight::processes(db).await.unwrap().remove(0);
            assert_eq!((process.worker.as_str(), process.state.as_str()), ("rooms", oversight::TAKING));
            assert!(process.is_alive() && (-0.1..10.0).contains(&process.silent_seconds), "{process:?}");

            // As it is a while later.
            let later = |time| Clock::of(db).before(Duration::from_secs(time));
            let silent = format!("UPDATE worker_process SET started_at = {}, seen_at = {}", later(90), later(40));
            db.execute_unprepared(&silent).await.unwrap();
            let process = oversight::processes(db).await.unwrap().remove(0);
            assert!(!process.is_alive() && (39.9..50.0).contains(&process.silent_seconds), "{process:?}");

            // What it reports again is when it was seen, and not when it started.
            heartbeat.report(oversight::PAUSED.into()).await.unwrap();
            let process = oversight::processes(db).await.unwrap().remove(0);
            assert!(process.is_alive() && (90.0..100.0).contains(&process.running_seconds), "{process:?}");
            assert_eq!(process.state, oversight::PAUSED);
            oversight::forget_the_old(db).await.unwrap();
            assert_eq!(oversight::processes(db).await.unwrap().len(), 1);

            // As it is of one that was killed before the clock was set back by an hour, or by more than anybody knows.
            let ahead = |time| Clock::of(db).after(Duration::from_secs(time));
            db.execute_unprepared(&format!("UPDATE worker_process SET seen_at = {}", ahead(3600))).await.unwrap();
            assert!(!oversight::processes(db).await.unwrap()[0].is_alive());
            heartbeat.report(oversight::PAUSED.into()).await.unwrap();
            assert!(oversight::processes(db).await.unwrap()[0].is_alive());
            db.execute_unprepared(&format!("UPDATE worker_process SET seen_at = {}", ahead(8 * 24 * 3600)))
                .await
                .unwrap();
            oversight::forget_the_old(db).await.unwrap();
            assert_eq!(oversight::processes(db).await.unwrap(), []);
            heartbeat.report(oversight::PAUSED.into()).await.unwrap();
            let forgotten = format!("UPDATE worker_process SET seen_at = {}", later(8 * 24 * 3600));
            db.execute_unprepared(&forgotten).await.unwrap();
            oversight::forget_the_old(db).await.unwrap();
            assert_eq!(oversight::processes(db).await.unwrap(), []);
        }
    }

    #[tokio::test]
    async fn a_database_that_is_silent_keeps_no_heartbeat_from_ending() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("rollcall.db").display());
        let url = rollcall_shared::config::SecretUrl::parse(&url).unwrap();
        let db = rollcall_shared::store::connect(&url, 1).await.unwrap();
        // The one connection that there is.
        let held = rollcall_shared::store::begin(&db).await.unwrap();
        let worker = AnyWorker::DeadLetters;
        let (heartbeat, _) = Heartbeat::of(worker, db, InHand::default(), Obstacles::default());
        let stall = stall::tests::Watched::new(worker, folder.path()).stall;
        let stop = CancellationToken::new();
        let beating = tokio::spawn(heartbeat.run(stall, stop.clone()));
        tokio::task::yield_now().await;
        stop.cancel();
        let limit = FAREWELL + Duration::from_secs(1);
        timeout(limit, beating).await.expect("it waits for the database").unwrap();
        held.rollback().await.unwrap();
    }
}
