//! A worker tells the database every few seconds that it runs and how it is doing, and asks whether it shall rest.
//!
//! Data comes from what the worker has [in hand](InHand) and goes to `worker_process`; `worker_pause` is read. `rollcall status`
//! shows the one, and `rollcall pause` fills the other.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rollcall_shared::event::AnyWorker;
use rollcall_shared::oversight;
use rollcall_shared::queue::{InHand, host};
use rollcall_shared::store::entity::{worker_pause as pause, worker_process as process};
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::{DatabaseConnection, DbErr};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use uuid::Uuid;

/// How often it asks whether it shall rest.
const ASK: Duration = Duration::from_secs(2);
/// How often it tells how it is doing, if nothing else changes: each time costs a file its sync.
const TELL: Duration = Duration::from_secs(10);
/// How long the database may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long the database may take when the program ends.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is told of one worker in one process.
pub(crate) struct Heartbeat {
    worker: AnyWorker,
    id: String,
    started_at: DateTime<Utc>,
    db: DatabaseConnection,
    in_hand: InHand,
    obstacles: Obstacles,
    paused: watch::Sender<bool>,
    told: Option<Told>,
}

/// What was told last.
struct Told {
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
        (Self { worker, id, started_at: Utc::now(), db, in_hand, obstacles, paused, told: None }, rests)
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

    /// Tells and asks until `stop`; then the process is forgotten.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut rounds = interval(ASK);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            self.ask().await;
            let state = self.state();
            let is_due = self.told.as_ref().is_none_or(|told| told.at.elapsed() >= TELL || told.state != state);
            if is_due {
                match timeout(LIMIT, self.tell(&state)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => debug!(%error, "a heartbeat could not be told; will try again"),
                    Err(_) => debug!("a heartbeat was not taken in time; will try again"),
                }
            }
        }
        // What stays is seen to be old.
        let _ = timeout(FAREWELL, oversight::forget(&self.db, &self.id)).await;
    }

    fn state(&self) -> String {
        match self.obstacles.check() {
            _ if *self.paused.borrow() => "paused".to_owned(),
            Ok(()) => "taking".to_owned(),
            Err(obstacles) => obstacles,
        }
    }

    async fn tell(&mut self, state: &str) -> Result<(), DbErr> {
        let (now, settled) = (Instant::now(), self.in_hand.settled());
        let rate = self.told.as_ref().map_or(0.0, |told| {
            let seconds = (now - told.at).as_secs_f64().max(0.001);
            settled.saturating_sub(told.settled) as f64 / seconds
        });
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let row = process::Model {
            id: self.id.clone(),
            worker: self.worker.as_str().to_owned(),
            host: host(),
            pid: std::process::id().into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.to_owned(),
            started_at: self.started_at,
            seen_at: Utc::now(),
            in_flight: number(self.in_hand.unsettled() as u64),
            settled: number(settled),
            rate,
            oldest_received_at: self.in_hand.oldest(),
        };
        oversight::tell(&self.db, row).await?;
        if self.told.is_none() {
            oversight::forget_the_old(&self.db).await?;
        }
        self.told = Some(Told { at: now, state: state.to_owned(), settled });
        Ok(())
    }
}
