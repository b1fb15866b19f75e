//! Dead letters: out of the queue, into the table `dead_letter`, where an operator finds them.
//!
//! What the table does not have yet stays in the queue: it is taken out only once the transaction is committed. What comes twice
//! is there once. Besides, this worker removes what is not [kept](crate::keeping) any longer.

use std::time::Duration;

use metrics::counter;
use rollcall_shared::dead_letters;
use rollcall_shared::queue::{Drain, Drained, Held, InHand, Queue, QueueError};
use rollcall_shared::store;
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::DatabaseConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::keeping::Keeping;
use crate::transaction::transaction;
use crate::worker::Failure;

/// How many go into one transaction.
const AT_ONCE: usize = 200;
/// How often to look for more, where there were none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long to wait before trying again what did not work.
const AGAIN: Duration = Duration::from_secs(1);
/// How often to remove what is not kept any longer.
const PRUNE: Duration = Duration::from_hours(1);

const NO_QUEUE: &str = "the queue is away";
const NO_DATABASE: &str = "the database is away";
const REFUSED: &str = "the database does not take dead letters; the log says why";

/// The worker.
pub(crate) struct DeadLetters {
    pub(crate) queue: Queue,
    pub(crate) db: DatabaseConnection,
    /// What is removed now and then.
    pub(crate) keeping: Keeping,
    pub(crate) in_hand: InHand,
    pub(crate) obstacles: Obstacles,
    pub(crate) paused: watch::Receiver<bool>,
}

/// What ended a round of taking.
enum Ended {
    /// The queue, or the way to it.
    Queue(QueueError),
    /// The database. What was taken is back in the queue.
    Database(Failure),
}

impl From<QueueError> for Ended {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl DeadLetters {
    /// Takes dead letters until `stop`.
    ///
    /// # Errors
    /// At the start: the broker refuses us, or a queue exists with other arguments. Later that is an obstacle, and tried again.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), QueueError> {
        let (mut next_pruning, mut has_taken) = (Instant::now(), false);
        while !stop.is_cancelled() {
            match self.take(&stop, &mut next_pruning, &mut has_taken).await {
                Ok(()) => {}
                Err(Ended::Queue(error)) if error.is_final() && !has_taken => return Err(error),
                Err(Ended::Queue(error)) => {
                    if self.obstacles.add(NO_QUEUE) {
                        warn!(%error, "no dead letters can be taken; will try again");
                    }
                    stop.run_until_cancelled(sleep(AGAIN)).await;
                }
                Err(Ended::Database(error)) => {
                    warn!(%error, "dead letters cannot be stored: they stay in the queue until they can");
                    let away = matches!(error, Failure::Unreachable(_));
                    let obstacle = if away { NO_DATABASE } else { REFUSED };
                    stop.run_until_cancelled(self.database_takes_them(obstacle)).await;
                }
            }
            stop.run_until_cancelled(self.pause_is_over()).await;
        }
        Ok(())
    }

    /// Takes dead letters until told to stop or to rest.
    async fn take(
        &self,
        stop: &CancellationToken,
        next_pruning: &mut Instant,
        has_taken: &mut bool,
    ) -> Result<(), Ended> {
        let mut drain = self.queue.drain(&Drained::Dead).await?;
        *has_taken = true;
        self.obstacles.remove(NO_QUEUE);
        info!("taking dead letters");
        while !stop.is_cancelled() && !*self.paused.borrow() {
            let moved = self.some(&mut drain).await?;
            if Instant::now() >= *next_pruning {
                self.prune().await?;
                *next_pruning = Instant::now() + PRUNE;
            }
            if moved == 0 {
                stop.run_until_cancelled(sleep(LOOK_AGAIN)).await;
            }
        }
        Ok(())
    }

    /// Moves some of them; how many.
    async fn some(&self, drain: &mut Drain) -> Result<usize, Ended> {
        let dead = drain.next(AT_ONCE).await?;
        if dead.is_empty() {
            return Ok(0);
        }
        let mut in_hand: Vec<_> = dead.iter().map(|dead| self.in_hand.take(dead.message.received_at)).collect();
        let dead = &dead;
        transaction(&self.db, |tx| async move { Ok(dead_letters::record(&tx, dead).await?) })
            .await
            .map_err(Ended::Database)?;
        drain.confirm().await?;
        in_hand.iter_mut().for_each(Held::settle);
        self.obstacles.remove(REFUSED);
        counter!("rollcall_worker_dead_letters_total").increment(dead.len() as u64);
        info!(dead_letters = dead.len(), "stored dead letters");
        Ok(dead.len())
    }

    async fn prune(&self) -> Result<(), Ended> {
        match self.keeping.prune(&self.db).await {
            Err(error @ Failure::Unreachable(_)) => Err(Ended::Database(error)),
            // Taking more of them is worth more than removing some.
            Err(error) => {
                warn!(%error, "what was kept for long enough cannot be removed; will try again");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Waits until the database may take them; `obstacle` until it has.
    async fn database_takes_them(&self, obstacle: &'static str) {
        self.obstacles.add(obstacle);
        sleep(AGAIN).await;
        while !store::is_reachable(&self.db).await {
            sleep(AGAIN).await;
        }
        self.obstacles.remove(NO_DATABASE);
    }

    async fn pause_is_over(&self) {
        // Who would say that it is has gone: the program ends.
        let _ = self.paused.clone().wait_for(|paused| !*paused).await;
    }
}
