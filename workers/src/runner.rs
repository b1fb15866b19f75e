//! What every worker needs and no rule should know: batches, retries, dead letters, outages, shutdown, metrics.
//!
//! Deliveries come from the [`Consumer`]'s two lanes, are read into events, and given to the worker in batches; suspects are
//! taken one at a time, while nothing else is under way in this process. How a batch went decides what becomes of its
//! deliveries:
//!
//! | outcome | its deliveries |
//! | --- | --- |
//! | applied, or nothing to do | acknowledged |
//! | somebody is at it | come back later, no attempt spent |
//! | it goes on by itself | wait for its end; of a suspect, come back later to look after it |
//! | a batch failed | each event is tried alone |
//! | transient failure, or a panic | comes back after a delay of the schedule; dead when that is used up |
//! | permanent failure, or poison | dead at once |
//! | the database is not there | held until it is back; after [`HOLD`], handed back, and nothing is taken until it is |
//!
//! While somebody has the worker paused, nothing is taken.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use metrics::{counter, histogram};
use rollcall_shared::causes::in_one_line;
use rollcall_shared::config::RetrySchedule;
use rollcall_shared::event::Event;
use rollcall_shared::plugnmeet::webhook::{self, Parsed};
use rollcall_shared::queue::{
    Consumer, DeadKind, Delivery, InHand, Lane, Message, Queue, QueueError, Subscription, Suspects,
};
use rollcall_shared::store;
use rollcall_shared::telemetry::obstacles::Obstacles;
use sea_orm::DatabaseConnection;
use tokio::sync::{OwnedRwLockReadGuard, OwnedSemaphorePermit, RwLock, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tracing::{debug, error, info, warn};

use crate::cause::Told;
use crate::program::{Alone, Oversight, Surroundings};
use crate::transaction;
use crate::worker::{Batch, Failure, Handled, Job, Outcome, Worker};

/// How long deliveries are held while the database is away. RabbitMQ ends a channel after 30 minutes without an
/// acknowledgement, and counts that against every delivery on it.
pub(crate) const HOLD: Duration = Duration::from_mins(5);
/// How often to ask whether the database is back, and whether deliveries can be taken where that was refused.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What a worker is told whose database does not answer.
const NO_DATABASE: &str = "the database is away";
/// What a worker is told whose queue cannot be used any more.
const NO_QUEUE: &str = "the queue cannot be used; the log says why";

/// How much a worker takes at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// The most events in one batch.
    pub(crate) batch_size: usize,
    /// How long to wait for a batch to fill once it has begun.
    pub(crate) batch_wait: Duration,
    /// The most batches at once.
    pub(crate) concurrency: usize,
}

impl Limits {
    /// Enough to work on and as much again to wait, so that the next batch is here when this one is done. Where batches are of
    /// many, one more is being acknowledged, and one more on its way. A job that takes long is not to wait here, though, while
    /// another process has nothing to do.
    fn prefetch(self) -> u16 {
        (self.rounds() as usize * self.batch_size * self.concurrency).try_into().unwrap_or(u16::MAX)
    }

    /// How many batches one after the other it takes to work off what is prefetched.
    pub(crate) fn rounds(self) -> u32 {
        if self.batch_size == 1 { 2 } else { 4 }
    }
}

/// Runs a worker until `stop` is cancelled and what it had taken is settled.
///
/// # Errors
/// At the start: the broker refuses us, or a queue exists with other arguments. Later that is an obstacle, and tried again.
pub(crate) async fn run<W: Worker>(
    worker: W,
    surroundings: Surroundings,
    oversight: Oversight,
    retry: RetrySchedule,
    limits: Limits,
    stop: CancellationToken,
) -> Result<(), QueueError> {
    let Surroundings { queue, db, obstacles, alone } = surroundings;
    let Oversight { in_hand, paused } = oversight;
    let at_work = Arc::new(RwLock::new(()));
    let runner = Arc::new(Runner { worker: Arc::new(worker), retry, db, limits, obstacles, at_work, alone, in_hand });
    let shutdown = tokio::spawn({
        let (runner, stop) = (runner.clone(), stop.clone());
        async move {
            stop.cancelled().await;
            runner.worker.shutdown().await;
        }
    });
    let mut is_starting = true;
    while !stop.is_cancelled() {
        // Whoever let it start may be gone by the time that the pause is over.
        is_starting &= !*paused.borrow();
        // Where nobody can say any more that the pause is over, the program ends.
        let _ = stop.run_until_cancelled(paused.clone().wait_for(|paused| !*paused)).await;
        // Cancelled by `stop`, by a pause, or by an outage of the database that lasts.
        let taking = stop.child_token();
        let pause = AbortOnDropHandle::new(tokio::spawn(pause(paused.clone(), taking.clone())));
        match runner.take(&queue, &taking).await {
            Ok(()) => is_starting = false,
            Err(error) if is_starting => return Err(error),
            Err(error) => {
                runner.cannot_take(&error);
                stop.run_until_cancelled(sleep(ASK_AGAIN)).await;
                continue;
            }
        }
        drop(pause);
        if !stop.is_cancelled() && !*paused.borrow() {
            stop.run_until_cancelled(runner.database_is_back()).await;
        }
    }
    if let Err(error) = shutdown.await {
        warn!(%error, "the worker did not shut down well");
    }
    Ok(())
}

/// Ends taking as soon as somebody pauses the worker.
async fn pause(mut paused: watch::Receiver<bool>, taking: CancellationToken) {
    if paused.wait_for(|paused| *paused).await.is_ok() {
        taking.cancel();
    }
}

struct Runner<W> {
    worker: Arc<W>,
    retry: RetrySchedule,
    db: DatabaseConnection,
    limits: Limits,
    obstacles: Obstacles,
    /// Shared by what may be under way together; a suspect has it alone.
    at_work: Arc<RwLock<()>>,
    alone: Alone,
    in_hand: InHand,
}

/// What is held while a batch may take this process along.
enum AtWork {
    /// A batch of the worker's own queue: beside others of those, and no suspect.
    Beside(Option<OwnedRwLockReadGuard<()>>),
    /// A suspect.
    Alone,
}

impl AtWork {
    /// Waits for a job: nobody else has to wait for it. A suspect is not to be held for so long; its delivery looks after the
    /// job later.
    async fn wait_for(&mut self, job: Job) -> Result<Outcome, Failure> {
        match self {
            Self::Beside(guard) => {
                guard.take();
                match job.ended.await {
                    // To be tried again here it would need the guard.
                    Err(Failure::Unreachable(error)) => {
                        warn!(error = in_one_line(&error), "a job has ended without the database: will look again");
                        Ok(Outcome::LookAgain(job.look_again))
                    }
                    ended => ended,
                }
            }
            Self::Alone => Ok(Outcome::LookAgain(job.look_again)),
        }
    }
}

/// A delivery and what it says.
struct Taken {
    delivery: Delivery,
    event: Event,
}

impl<W: Worker> Runner<W> {
    /// Takes deliveries until told to stop, and settles each.
    async fn take(self: &Arc<Self>, queue: &Queue, taking: &CancellationToken) -> Result<(), QueueError> {
        let subscription = Subscription {
            worker: W::NAME,
            retry: self.retry.clone(),
            prefetch: self.limits.prefetch(),
            in_hand: self.in_hand.clone(),
            obstacles: self.obstacles.clone(),
            stop: taking.clone(),
        };
        let Consumer { main, suspects, closed } = queue.consumer(subscription).await?;
        self.obstacles.remove(NO_QUEUE);
        tokio::join!(self.drain(main, taking), self.drain_suspects(suspects, taking));
        if let Err(error) = closed.await {
            warn!(%error, "the consumer did not end well");
        }
        Ok(())
    }

    fn cannot_take(&self, error: &QueueError) {
        if self.obstacles.add(NO_QUEUE) {
            error!(worker = %W::NAME, %error, "no deliveries can be taken until this is put right; will try again");
        }
    }

    /// Works off the worker's own queue.
    async fn drain(self: &Arc<Self>, mut lane: Lane, taking: &CancellationToken) {
        let Limits { batch_size, batch_wait, concurrency } = self.limits;
        let slots = Arc::new(Semaphore::new(concurrency));
        let batches = TaskTracker::new();
        while let Ok(slot) = slots.clone().acquire_owned().await {
            let Some(batch) = lane.next_batch(batch_size, batch_wait).await else { break };
            let at_work = AtWork::Beside(Some(self.at_work.clone().read_owned().await));
            let (runner, taking) = (self.clone(), taking.clone());
            batches.spawn(async move { runner.process(batch, Some(slot), at_work, &taking).await });
        }
        batches.close();
        batches.wait().await;
    }

    /// Works off what came back, one at a time: if that kills this process, no other suspect is there to be blamed, and what is
    /// of the worker's own queue becomes one.
    async fn drain_suspects(&self, mut suspects: Suspects, taking: &CancellationToken) {
        while suspects.wait().await {
            // For one: the worker's own queue has its turn after it. In this order: what is under way here is not to be waited for
            // by other workers.
            let _alone = (self.at_work.write().await, self.alone.lock().await);
            if let Some(suspect) = suspects.take().await {
                self.process(vec![suspect], None, AtWork::Alone, taking).await;
            }
        }
    }

    /// Settles a batch; once it is applied, its slot is free for the next. Where that panics, the deliveries are dropped
    /// unsettled: a new consumer makes them come back.
    async fn process(
        &self,
        batch: Vec<Delivery>,
        slot: Option<OwnedSemaphorePermit>,
        at_work: AtWork,
        taking: &CancellationToken,
    ) {
        if AssertUnwindSafe(self.settle_all(batch, slot, at_work, taking)).catch_unwind().await.is_err() {
            error!(worker = %W::NAME, "settling a batch panicked: beginning anew");
            taking.cancel();
        }
    }

    async fn settle_all(
        &self,
        batch: Vec<Delivery>,
        slot: Option<OwnedSemaphorePermit>,
        mut at_work: AtWork,
        taking: &CancellationToken,
    ) {
        let mut taken = Vec::with_capacity(batch.len());
        // While it waited for its turn, the connection that it came on may have gone.
        for delivery in batch.into_iter().filter(Delivery::is_ours) {
            if let Some(event) = self.read(delivery).await {
                taken.push(event);
            }
        }
        if taken.is_empty() {
            return;
        }
        histogram!("rollcall_worker_batch_events", "worker" => W::NAME.as_str()).record(taken.len() as f64);
        match self.attempt(&taken, &mut at_work, taking).await {
            Err(failure) if taken.len() > 1 && !matches!(failure, Failure::Unreachable(_)) => {
                debug!(events = taken.len(), error = %failure, "a batch failed, trying its events one by one");
                for one in taken {
                    // Each try would wait for a database that is away.
                    if taking.is_cancelled() {
                        count::<W>("handed_back", 1);
                        one.delivery.hand_back();
                        continue;
                    }
                    let outcome = self.attempt(std::slice::from_ref(&one), &mut at_work, taking).await;
                    self.settle(one, &outcome, taking).await;
                }
            }
            Ok(Outcome::Applied) => {
                count::<W>("applied", taken.len());
                // An acknowledgement waits for a disk where the queue is a file.
                drop(slot);
                Delivery::ack_all(taken.into_iter().map(|one| one.delivery).collect()).await;
            }
            outcome => {
                for one in taken {
                    self.settle(one, &outcome, taking).await;
                }
            }
        }
    }

    /// The delivery with its event; settles it here where there is nothing for the worker to do.
    async fn read(&self, delivery: Delivery) -> Option<Taken> {
        let message = &delivery.message;
        match webhook::parse(&message.source, &message.body, message.received_at) {
            Ok(Parsed::Event(event)) => Some(Taken { delivery, event }),
            Ok(Parsed::Ignored(reason)) => {
                debug!(message_id = %message.id, event = message.event, reason, "an event changes nothing");
                counter!("rollcall_worker_ignored_total", "worker" => W::NAME.as_str(), "reason" => reason)
                    .increment(1);
                self.ignore(delivery).await;
                None
            }
            Err(error) => {
                self.bury(delivery, DeadKind::Permanent, &Failure::permanent(error));
                None
            }
        }
    }

    /// There is nothing to do, and that is done; what had died has found its end.
    async fn ignore(&self, delivery: Delivery) {
        if let Some(replay) = delivery.message.replayed()
            && let Err(error) = transaction::apply(&self.db, &[replay], |_| async { Ok(()) }).await
        {
            let delay = self.retry.delays().first().copied().unwrap_or_default();
            warn!(message_id = %delivery.message.id, %error, "what became of a dead letter cannot be told yet");
            return delivery.postpone(delay);
        }
        count::<W>("ignored", 1);
        delivery.ack().await;
    }

    /// Gives the events to the worker, again and again while the database is away.
    ///
    /// `Unreachable` comes out of here only where waiting has an end: the outage lasts, or the program stops.
    async fn attempt(
        &self,
        taken: &[Taken],
        at_work: &mut AtWork,
        taking: &CancellationToken,
    ) -> Result<Outcome, Failure> {
        let batch: Arc<Batch> =
            Arc::new(taken.iter().map(|one| (one.event.clone(), one.delivery.message.replayed())).collect());
        let since = Instant::now();
        loop {
            let began = Instant::now();
            let outcome = match self.handle(batch.clone()).await {
                Ok(Handled::UnderWay(job)) => at_work.wait_for(job).await,
                Ok(Handled::Ended(outcome)) => Ok(outcome),
                Err(failure) => Err(failure),
            };
            histogram!("rollcall_worker_batch_seconds", "worker" => W::NAME.as_str()).record(began.elapsed());
            let Err(Failure::Unreachable(error)) = outcome else { return outcome };
            warn!(worker = %W::NAME, error = in_one_line(&error), "the database is away: waiting for it");
            let patience = HOLD.saturating_sub(since.elapsed());
            let back = timeout(patience, taking.run_until_cancelled(self.database_is_back()));
            if !matches!(back.await, Ok(Some(()))) {
                // Whoever waits in the lanes is not to be kept either.
                taking.cancel();
                return Err(Failure::Unreachable(error));
            }
        }
    }

    /// A panic in a rule is a failure like any other, not a dead process.
    async fn handle(&self, batch: Arc<Batch>) -> Result<Handled, Failure> {
        let worker = self.worker.clone();
        match tokio::spawn(async move { worker.handle(&batch).await }).await {
            Ok(handled) => handled,
            Err(error) => Err(Failure::transient(Told::new("panic", format!("the rule panicked: {error}")))),
        }
    }

    async fn settle(&self, taken: Taken, outcome: &Result<Outcome, Failure>, taking: &CancellationToken) {
        let Taken { delivery, event } = taken;
        match outcome {
            Ok(Outcome::Applied) => {
                count::<W>("applied", 1);
                delivery.ack().await;
            }
            Ok(Outcome::LookAgain(Duration::ZERO)) => {
                count::<W>("handed_back", 1);
                delivery.hand_back();
            }
            Ok(Outcome::LookAgain(delay)) => {
                count::<W>("look_again", 1);
                delivery.postpone(*delay);
            }
            Err(Failure::Unreachable(_)) => {
                count::<W>("handed_back", 1);
                delivery.hand_back();
            }
            Err(failure @ Failure::Permanent(_)) => {
                self.give_up(delivery, &event, DeadKind::Permanent, failure, taking).await;
            }
            Err(failure @ Failure::Poison(_)) => {
                self.give_up(delivery, &event, DeadKind::Poison, failure, taking).await;
            }
            Err(failure @ Failure::Transient(_)) => match next_delay(&self.retry, delivery.message.attempt) {
                Some(delay) => {
                    describe(&delivery.message, &failure.to_string(), "an event failed and is tried again later");
                    count::<W>("retried", 1);
                    delivery.retry(delay, &failure.to_string());
                }
                None => self.give_up(delivery, &event, DeadKind::Exhausted, failure, taking).await,
            },
        }
    }

    /// Tells the tables, then buries the delivery. Where the tables cannot be told, that is tried again.
    async fn give_up(
        &self,
        delivery: Delivery,
        event: &Event,
        kind: DeadKind,
        failure: &Failure,
        taking: &CancellationToken,
    ) {
        while let Err(error) = self.worker.gave_up(event, failure).await {
            warn!(worker = %W::NAME, %error, "the tables cannot be told of a dead letter yet");
            if !matches!(error, Failure::Unreachable(_)) {
                break;
            }
            let back = timeout(HOLD, taking.run_until_cancelled(self.database_is_back()));
            if !matches!(back.await, Ok(Some(()))) {
                taking.cancel();
                return delivery.hand_back();
            }
        }
        self.bury(delivery, kind, failure);
    }

    fn bury(&self, delivery: Delivery, kind: DeadKind, failure: &Failure) {
        let error = failure.to_string();
        describe(&delivery.message, &error, "an event is dead");
        count::<W>(kind.as_str(), 1);
        delivery.bury(kind, failure.cause(), &error);
    }

    async fn database_is_back(&self) {
        self.obstacles.add(NO_DATABASE);
        // First, too: one that answers and takes no writes, such as a standby, must not keep us busy.
        sleep(ASK_AGAIN).await;
        while !store::is_reachable(&self.db).await {
            sleep(ASK_AGAIN).await;
        }
        self.obstacles.remove(NO_DATABASE);
        info!(worker = %W::NAME, "the database is there");
    }
}

fn count<W: Worker>(outcome: &'static str, events: usize) {
    let counter = counter!("rollcall_worker_events_total", "worker" => W::NAME.as_str(), "outcome" => outcome);
    counter.increment(events as u64);
}

fn describe(message: &Message, error: &str, what: &str) {
    warn!(
        message_id = %message.id,
        event_id = message.event_id,
        event = message.event,
        source = message.source,
        room_id = message.room_id,
        traceparent = message.traceparent,
        attempt = message.attempt + 1,
        error,
        "{what}"
    );
}

/// How long an event waits that has failed `before` times before this one; None when the schedule is used up.
///
/// One of two neighbours by chance, so that what failed together does not come back together.
fn next_delay(retry: &RetrySchedule, before: u32) -> Option<Duration> {
    let delays = retry.delays();
    let step = usize::try_from(before).ok().filter(|step| *step < delays.len())?;
    let neighbour = step + usize::from(rand::random::<bool>());
    delays.get(neighbour).or(delays.last()).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_tried_once_and_once_a_delay() {
        let retry: RetrySchedule = serde_json::from_str(r#""1s,5s,30s""#).unwrap();
        let seconds = |before| next_delay(&retry, before).map(|delay| delay.as_secs());
        for _ in 0..20 {
            assert!(matches!(seconds(0), Some(1 | 5)));
            assert!(matches!(seconds(1), Some(5 | 30)));
            assert_eq!(seconds(2), Some(30));
            assert_eq!(seconds(3), None);
        }
    }
}
