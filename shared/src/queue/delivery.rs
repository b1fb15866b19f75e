//! A worker's side, whichever the back end: deliveries out, each settled once its effect is safe.
//!
//! Two lanes. The worker's own queue comes many at a time. What comes back unacknowledged (whoever had it is gone, for
//! whatever reason) is a suspect, and is taken alone: what kills processes then dies alone, and its neighbours do not share
//! its count.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::host;
use super::in_hand::{Held, InHand};
use super::message::{DeadKind, Death, Message};
use crate::config::RetrySchedule;
use crate::event::WorkerName;
use crate::telemetry::obstacles::Obstacles;
use tokio_util::sync::CancellationToken;

/// What a worker wants delivered, and how.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Whose queue.
    pub worker: WorkerName,
    /// The delays that a failed delivery may come back after.
    pub retry: RetrySchedule,
    /// The most deliveries that are unsettled at once.
    pub prefetch: u16,
    /// Where deliveries are counted, as long as they are not settled.
    pub in_hand: InHand,
    /// Where to say that no deliveries can come.
    pub obstacles: Obstacles,
    /// When to take no more: the lanes end after what has been delivered so far.
    pub stop: CancellationToken,
}

/// A worker's deliveries, for as long as it wants them: what is lost on the way comes back by itself.
#[derive(Debug)]
pub struct Consumer {
    /// The worker's own queue.
    pub main: Lane,
    /// What came back once already.
    pub suspects: Suspects,
    /// Ends once the consumer was told to stop and every delivery is settled.
    pub closed: JoinHandle<()>,
}

/// Deliveries as they come.
#[derive(Debug)]
pub struct Lane {
    deliveries: mpsc::UnboundedReceiver<Delivery>,
    waiting: Arc<AtomicUsize>,
}

/// The back end's end of [`Lane`]. Giving never waits, since whoever takes may wait for the back end; what may be unsettled at
/// once bounds how many there are.
#[derive(Debug)]
pub(super) struct LaneSource {
    deliveries: mpsc::UnboundedSender<Delivery>,
    waiting: Arc<AtomicUsize>,
}

impl LaneSource {
    pub(super) fn give(&self, delivery: Delivery) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // A worker that has gone does not take it: it comes back when the back end ends.
        let _ = self.deliveries.send(delivery);
    }

    /// Whether the worker has taken all that was given.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }
}

impl Lane {
    pub(super) fn new() -> (LaneSource, Self) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        (LaneSource { deliveries: sender, waiting: waiting.clone() }, Self { deliveries: receiver, waiting })
    }

    /// The next deliveries: waits for the first, then up to `wait` for more, until there are `most`.
    ///
    /// None when the consumer was told to stop and everything delivered has been given out.
    pub async fn next_batch(&mut self, most: usize, wait: Duration) -> Option<Vec<Delivery>> {
        let mut batch = vec![self.next().await?];
        let deadline = Instant::now() + wait;
        while batch.len() < most {
            match timeout_at(deadline, self.next()).await {
                Ok(Some(delivery)) => batch.push(delivery),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }

    async fn next(&mut self) -> Option<Delivery> {
        loop {
            let delivery = self.deliveries.recv().await?;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            if delivery.is_ours() {
                return Some(delivery);
            }
        }
    }
}

/// Deliveries that are taken one at a time, when nothing else is under way that could die with them.
#[derive(Debug)]
pub struct Suspects {
    waiting: watch::Receiver<bool>,
    asks: mpsc::Sender<oneshot::Sender<Delivery>>,
}

/// The back end's end of [`Suspects`].
#[derive(Debug)]
pub(super) struct SuspectSource {
    waiting: watch::Sender<bool>,
    /// Each wants one; dropped, there is none.
    pub(super) asks: mpsc::Receiver<oneshot::Sender<Delivery>>,
}

impl SuspectSource {
    /// Tells the worker whether any wait.
    pub(super) fn tell(&self, waiting: bool) {
        self.waiting.send_if_modified(|told| std::mem::replace(told, waiting) != waiting);
    }

    /// There are none for as long as that takes: who asks for one keeps others from their work meanwhile.
    pub(super) async fn none_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        self.tell(false);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(ask) = self.asks.recv() => drop(ask),
            }
        }
    }
}

impl Suspects {
    pub(super) fn new() -> (SuspectSource, Self) {
        let (waiting, told) = watch::channel(false);
        let (ask, asks) = mpsc::channel(1);
        (SuspectSource { waiting, asks }, Self { waiting: told, asks: ask })
    }

    /// Waits until there may be one to take; `false` when the consumer was told to stop.
    pub async fn wait(&mut self) -> bool {
        // The last word of a back end that has ended may have been that some do.
        self.waiting.wait_for(|waiting| *waiting).await.is_ok() && !self.asks.is_closed()
    }

    /// The next one, if there still is one.
    pub async fn take(&mut self) -> Option<Delivery> {
        let (answer, delivery) = oneshot::channel();
        self.asks.send(answer).await.ok()?;
        delivery.await.ok()
    }
}

/// A message that is ours until it is settled. One that is dropped unsettled comes back when whoever delivered it ends.
#[derive(Debug)]
pub struct Delivery {
    /// What was delivered.
    pub message: Message,
    /// Which of its origin's deliveries.
    pub(super) tag: u64,
    pub(super) origin: Arc<dyn Origin>,
    /// Tells the origin when the last of its deliveries is gone.
    pub(super) _unsettled: TaskTrackerToken,
    pub(super) in_hand: Held,
}

/// What delivered, and is told what became of it.
pub(super) trait Origin: fmt::Debug + Send + Sync {
    /// These are done. All are of this origin.
    fn ack(&self, deliveries: Vec<Delivery>) -> BoxFuture<'_, ()>;

    /// Whether its deliveries can still be settled.
    fn is_open(&self) -> bool;

    /// This goes elsewhere, as the message that it is now: in the background, since that may take its time.
    fn move_to(&self, delivery: Delivery, destination: Destination);
}

/// Where a delivery goes that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// Back to the worker's queue after a delay.
    Later(Duration),
    /// To the end of the worker's queue.
    Queue,
    /// To where suspects wait.
    Suspects,
    /// To the dead letters.
    Dead(Death),
}

/// Each settles the delivery, at once or in the background, or leaves it to come back: either way nothing is lost.
impl Delivery {
    /// Whether it still can be settled: where the connection that it came on is gone, it comes again, and what is done about it
    /// here is done twice.
    pub fn is_ours(&self) -> bool {
        self.origin.is_open()
    }

    /// Its effect is committed.
    pub async fn ack(self) {
        Self::ack_all(vec![self]).await;
    }

    /// Their effect is committed.
    pub async fn ack_all(mut deliveries: Vec<Self>) {
        deliveries.iter_mut().for_each(|delivery| delivery.in_hand.settle());
        // Where a connection was lost in between, not all of them are of one origin.
        while let Some(origin) = deliveries.first().map(|delivery| delivery.origin.clone()) {
            let (of_origin, others) =
                deliveries.into_iter().partition::<Vec<_>, _>(|delivery| Arc::ptr_eq(&delivery.origin, &origin));
            origin.ack(of_origin).await;
            deliveries = others;
        }
    }

    /// It failed, and comes back after `delay`, one of the worker's schedule.
    pub fn retry(mut self, delay: Duration, error: &str) {
        self.message = self.message.failed(error);
        self.move_to(Destination::Later(delay));
    }

    /// It did not fail, and comes back after about `delay`: no earlier, unless the worker's longest delay is shorter.
    pub fn postpone(self, delay: Duration) {
        self.move_to(Destination::Later(delay));
    }

    /// It was not tried: back to the end of the worker's queue, as if it had never been delivered.
    pub fn hand_back(self) {
        self.move_to(Destination::Queue);
    }

    /// It is dead: to where an operator finds it, with why, when, how often and where. `cause` is a short stable word for what
    /// similar failures share.
    pub fn bury(mut self, kind: DeadKind, cause: &str, error: &str) {
        self.message = self.message.failed(error);
        self.move_to(Destination::Dead(Death { kind, cause: cause.to_owned(), host: host(), at: Utc::now() }));
    }

    pub(super) fn move_to(mut self, destination: Destination) {
        self.in_hand.settle();
        let origin = self.origin.clone();
        origin.move_to(self, destination);
    }
}
