//! Deliveries out of the file: taken for a holder, given to the worker's lanes, and settled by the writer.

use std::sync::Arc;
use std::time::Duration;

use chrono::{TimeDelta, Utc};
use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::holder::{self, Holder};
use super::messages::{self, Due, Place, Stored};
use super::writer::{Store, StoreError};
use crate::queue::delivery::{
    Consumer, Delivery, Destination, Lane, LaneSource, Origin, Subscription, SuspectSource, Suspects,
};
use crate::queue::message::POISON;
use crate::queue::{DeadKind, Death, QueueError, host};

/// How often to look whether another process has written.
const LOOK_FOR_OTHERS: Duration = Duration::from_millis(50);
/// How often to look for what is due, who is gone, and suspects.
const LOOK_FOR_THE_REST: Duration = Duration::from_millis(250);
/// How much of what is due goes back at once: 800 a second, beside what comes in.
const DUE_AT_ONCE: u32 = 200;
/// How often a message may take the process that has it, alone, along: as often as on RabbitMQ.
const MOST_DEATHS: i64 = 3;
/// How long to wait before trying again what the file would not take.
const AGAIN: Duration = Duration::from_secs(1);

/// What the worker is not ready for.
const UNREADABLE: &str = "the queue file cannot be read";

/// Begins to take deliveries.
///
/// # Errors
/// The file cannot be used.
pub(super) async fn start(store: Arc<Store>, subscription: Subscription) -> Result<Consumer, QueueError> {
    let holder = store.file.new_worker()?;
    let reader = store.file.reader().await?;
    let (to_main, main) = Lane::new();
    let (to_suspects, suspects) = Suspects::new();
    let origin = Arc::new(FileOrigin {
        store,
        queues: Queues::of(subscription.worker.as_str()),
        longest_delay: subscription.retry.delays().last().copied().unwrap_or_default(),
        deliveries: TaskTracker::new(),
        settled: Arc::new(Notify::new()),
    });
    let intake =
        Intake { origin, holder, reader, subscription, read_up_to: 0, more: true, failed: false, data_version: 0 };
    let closed = tokio::spawn(intake.run(to_main, to_suspects));
    Ok(Consumer { main, suspects, closed })
}

/// A worker's queues.
#[derive(Debug, Clone)]
pub(super) struct Queues {
    pub(super) own: String,
    pub(super) retry: String,
    pub(super) suspect: String,
    pub(super) dead: String,
}

impl Queues {
    pub(super) fn of(worker: &str) -> Self {
        let named = |part: &str| format!("{worker}{part}");
        Self { own: named(""), retry: named(".retry"), suspect: named(".suspect"), dead: named(".dead") }
    }

    /// Those that one of this name is among.
    fn with(queue: &str) -> Self {
        Self::of(queue.split('.').next().unwrap_or_default())
    }

    /// Whether a queue of this name is a worker's own.
    fn has_own(queue: &str) -> bool {
        Self::with(queue).own == queue
    }

    fn place(&self, destination: Destination) -> Place {
        let (queue, due_at, death) = match destination {
            Destination::Later(delay) => {
                let delay = TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX);
                (&self.retry, Utc::now().checked_add_signed(delay), None)
            }
            Destination::Queue => (&self.own, None, None),
            Destination::Suspects => (&self.suspect, None, None),
            Destination::Dead(death) => (&self.dead, None, Some(death)),
        };
        Place { queue: queue.clone(), due_at, death }
    }
}

/// What is told how deliveries were settled.
#[derive(Debug)]
struct FileOrigin {
    store: Arc<Store>,
    queues: Queues,
    /// Nothing is put off for longer, as on RabbitMQ, which has no queue for that.
    longest_delay: Duration,
    deliveries: TaskTracker,
    /// Told when there may be room for more deliveries.
    settled: Arc<Notify>,
}

impl Origin for FileOrigin {
    fn ack(&self, deliveries: Vec<Delivery>) -> BoxFuture<'_, ()> {
        let seqs: Arc<[i64]> = deliveries.iter().map(|delivery| delivery.tag.cast_signed()).collect();
        Box::pin(async move {
            until_written(|| {
                let seqs = seqs.clone();
                self.store.write(|tx| Box::pin(async move { messages::delete(tx, seqs.iter().copied()).await }))
            })
            .await;
            drop(deliveries);
            self.settled.notify_one();
        })
    }

    fn is_open(&self) -> bool {
        true
    }

    fn move_to(&self, delivery: Delivery, destination: Destination) {
        let destination = match destination {
            Destination::Later(delay) => Destination::Later(delay.min(self.longest_delay)),
            elsewhere => elsewhere,
        };
        let place = Arc::new(self.queues.place(destination));
        let (store, settled) = (self.store.clone(), self.settled.clone());
        tokio::spawn(async move {
            until_written(|| {
                let (place, message, seq) = (place.clone(), delivery.message.clone(), delivery.tag.cast_signed());
                store.write(move |tx| Box::pin(async move { messages::move_to(tx, seq, &message, &place).await }))
            })
            .await;
            drop(delivery);
            store.changed();
            settled.notify_one();
        });
    }
}

/// What is not written stays with who has it, and is written as soon as the file takes it.
async fn until_written<F: Future<Output = Result<(), StoreError>>>(write: impl Fn() -> F) {
    while let Err(error) = write().await {
        if matches!(error, StoreError::Stopping) {
            return;
        }
        // The writer has told the log, once for all.
        debug!(%error, "a delivery could not be settled; will try again");
        sleep(AGAIN).await;
    }
}

/// What keeps the deliveries coming.
struct Intake {
    origin: Arc<FileOrigin>,
    holder: Holder,
    /// To look without waiting for the writer.
    reader: SqliteConnection,
    subscription: Subscription,
    /// The last of the worker's own queue that was seen: those before it are somebody's, or were.
    read_up_to: i64,
    /// Whether there may be any behind it.
    more: bool,
    /// Whether the last attempt to take some failed.
    failed: bool,
    data_version: i64,
}

impl Intake {
    async fn run(mut self, main: LaneSource, mut suspects: SuspectSource) {
        info!(worker = %self.subscription.worker, "taking deliveries");
        let (stop, settled) = (self.subscription.stop.clone(), self.origin.settled.clone());
        let mut changes = self.origin.store.changes();
        let mut others = every(LOOK_FOR_OTHERS);
        let mut rest = every(LOOK_FOR_THE_REST);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = changes.changed() => self.more = true,
                () = settled.notified() => {}
                _ = others.tick() => self.look_for_others().await,
                _ = rest.tick() => self.look_after_the_rest(&suspects).await,
                Some(ask) = suspects.asks.recv() => self.give_suspect(ask, &suspects).await,
            }
            self.fill(&main).await;
        }
        drop((main, suspects));
        self.origin.deliveries.close();
        self.origin.deliveries.wait().await;
        // A delivery that was dropped unsettled.
        give_back(&self.origin.store, self.holder.name.clone()).await;
    }

    /// Takes as much as may be unsettled at once, when there is room for half of that, or nothing left for the worker to go on
    /// with.
    async fn fill(&mut self, main: &LaneSource) {
        let prefetch = usize::from(self.subscription.prefetch);
        let room = prefetch.saturating_sub(self.origin.deliveries.len());
        if !self.more || room == 0 || (!main.is_empty() && room < prefetch.div_ceil(2)) {
            return;
        }
        let taken = self.take(self.origin.queues.own.clone(), self.read_up_to + 1, room).await;
        self.failed = taken.is_err();
        let taken = taken.unwrap_or_default();
        self.more = taken.len() == room;
        self.read_up_to = taken.last().map_or(self.read_up_to, |last| last.seq);
        for stored in taken {
            main.give(self.delivery(stored));
        }
    }

    async fn give_suspect(&mut self, ask: oneshot::Sender<Delivery>, suspects: &SuspectSource) {
        let taken = self.take(self.origin.queues.suspect.clone(), 0, 1).await;
        match taken.unwrap_or_default().pop() {
            Some(stored) => drop(ask.send(self.delivery(stored))),
            None => suspects.tell(false),
        }
    }

    /// Where it fails, the writer says why.
    async fn take(&self, queue: String, from: i64, most: usize) -> Result<Vec<Stored>, StoreError> {
        let holder = self.holder.name.clone();
        let taken = self
            .origin
            .store
            .write(move |tx| Box::pin(async move { messages::take(tx, &queue, &holder, from..=i64::MAX, most).await }));
        taken.await
    }

    fn delivery(&self, stored: Stored) -> Delivery {
        Delivery {
            in_hand: self.subscription.in_hand.take(stored.message.received_at),
            message: stored.message,
            tag: stored.seq.cast_unsigned(),
            origin: self.origin.clone(),
            _unsettled: self.origin.deliveries.token(),
        }
    }

    async fn look_for_others(&mut self) {
        if let Ok(version) = messages::data_version(&mut self.reader).await {
            self.more |= std::mem::replace(&mut self.data_version, version) != version;
        }
    }

    /// What is due, who is gone, and whether suspects wait.
    async fn look_after_the_rest(&mut self, suspects: &SuspectSource) {
        let looked = self.try_to_look_after_the_rest(suspects).await;
        match looked {
            Ok(()) => self.subscription.obstacles.remove(UNREADABLE),
            Err(error) => {
                warn!(%error, "the queue file cannot be read; will try again");
                self.subscription.obstacles.add(UNREADABLE);
            }
        }
    }

    async fn try_to_look_after_the_rest(&mut self, suspects: &SuspectSource) -> sqlx::Result<()> {
        let Queues { own, retry, suspect, .. } = self.origin.queues.clone();
        let due = Due::now(self.origin.longest_delay);
        // A file that took nothing then may do so now.
        self.more |= self.failed;
        if messages::has_due(&mut self.reader, &retry, due).await? {
            let moved = self
                .origin
                .store
                .write(move |tx| Box::pin(async move { messages::move_due(tx, &retry, due, &own, DUE_AT_ONCE).await }));
            self.more |= moved.await.is_ok();
        }
        give_back_the_gone(&self.origin.store, &mut self.reader, &self.holder.name).await?;
        suspects.tell(messages::has_any(&mut self.reader, &suspect).await?);
        Ok(())
    }
}

/// Gives back what those had who are gone. `ours` is not.
pub(super) async fn give_back_the_gone(store: &Store, reader: &mut SqliteConnection, ours: &str) -> sqlx::Result<()> {
    let folder = store.file.holders();
    for holder in messages::holders(reader).await? {
        if holder != ours && holder::is_gone(&folder, &holder) {
            give_back(store, holder.clone()).await;
            holder::forget(&folder, &holder);
        }
    }
    Ok(())
}

/// What one who is gone had: taken alone from now on, or dead, if it has taken its holder along too often. What was only to be
/// taken out waits as before.
async fn give_back(store: &Store, holder: String) {
    let given = store.write(move |tx| {
        Box::pin(async move {
            for stored in messages::held_by(tx, &holder).await? {
                if holder::is_drain(&holder) {
                    give_back_untouched(tx, &stored).await?;
                } else {
                    give_back_delivered(tx, stored).await?;
                }
            }
            messages::release_all(tx, &holder).await
        })
    });
    if given.await.is_err() {
        warn!("what came back waits for the file to be written to");
    }
}

/// A worker's own queue is read in order, and running workers have read past this: it goes to the end. The others are
/// looked through from their beginning.
async fn give_back_untouched(tx: &mut SqliteConnection, stored: &Stored) -> sqlx::Result<()> {
    let Stored { seq, queue, deaths, .. } = stored;
    if Queues::has_own(queue) { messages::relocate(tx, *seq, queue, *deaths).await } else { Ok(()) }
}

async fn give_back_delivered(tx: &mut SqliteConnection, stored: Stored) -> sqlx::Result<()> {
    let queues = Queues::with(&stored.queue);
    info!(message_id = %stored.message.id, "a delivery came back unacknowledged: it is taken alone from now on");
    let deaths = stored.deaths + i64::from(stored.queue == queues.suspect);
    if deaths <= MOST_DEATHS {
        return messages::relocate(tx, stored.seq, &queues.suspect, deaths).await;
    }
    let message = stored.message.failed(&format!("the process that had it, and nothing else, died: {deaths} times"));
    let death = Death { kind: DeadKind::Poison, cause: POISON.to_owned(), host: host(), at: Utc::now() };
    messages::move_to(tx, stored.seq, &message, &queues.place(Destination::Dead(death))).await
}

fn every(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
