//! Where webhooks wait that the broker does not take: a PlugNMeet server forgets an event within seconds, and a broker's restart
//! takes longer.
//!
//! [`Spooled`] publishes to the broker as long as that confirms in time. Once it does not, the circuit opens: whatever comes
//! is synced to a file, at once, and answered as well as if the broker had it. The drainer hands the file's events to the broker
//! as soon as it takes one, at a bounded rate beside live traffic, and deletes what is confirmed. Whatever is in doubt is
//! published again, which does no harm.
//!
//! The file is that of the [embedded queue](super::embedded); processes that share it take turns at its events as workers do.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use chrono::Utc;
use futures_util::future::{BoxFuture, join_all};
use metrics::gauge;
use sqlx::sqlite::SqliteConnection;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::amqp::Publisher;
use super::embedded::{File, Holder, Limits, Store, StoreError, Stored, holder, messages};
use super::{Message, Publish, PublishError, QueueError};
use crate::config;

/// The file's one queue.
const SPOOL: &str = "spool";
/// How often events are handed over, and how many at most: 2,000 a second, beside what comes in.
const DRAIN_EVERY: Duration = Duration::from_millis(50);
const DRAIN_AT_ONCE: usize = 100;
/// How long the broker has, at most, to confirm what it is tried with: what it does not confirm it may still store, so
/// that each try is one more of the same for the workers.
const LONGEST_TRY: Duration = Duration::from_secs(30);
/// How long to wait after the file could not be read or written.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the drainer may take when the program stops.
const LANDING_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look after the rest.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Publishes to the broker, or else to the spool.
pub(super) struct Spooled {
    shared: Arc<Shared>,
    stop: CancellationToken,
    draining: TaskTracker,
}

struct Shared {
    broker: Publisher,
    spool: Store,
    confirm_timeout: Duration,
    /// Whether the broker is left alone, but for the drainer's attempts.
    open: AtomicBool,
    /// How many events are in the file, as of a second ago.
    waiting: AtomicU64,
}

impl Spooled {
    /// Opens the spool's file and begins to drain it.
    ///
    /// # Errors
    /// The file cannot be used.
    pub(super) async fn start(broker: Publisher, settings: &config::Ingress) -> Result<Self, QueueError> {
        let config::Spool { path, max_bytes, min_free_bytes } = &settings.spool;
        let file = File::open(path).await?;
        let holder = file.new_worker()?;
        let (reader, watching) = (file.reader().await?, file.reader().await?);
        let limits = Limits { max_bytes: Some(*max_bytes), min_free_bytes: *min_free_bytes };
        let shared = Arc::new(Shared {
            broker,
            spool: Store::start(file, limits),
            confirm_timeout: settings.confirm_timeout,
            open: AtomicBool::new(false),
            waiting: AtomicU64::new(0),
        });
        let (stop, draining) = (CancellationToken::new(), TaskTracker::new());
        let watch = Watch { shared: shared.clone(), ours: holder.name.clone(), reader: watching };
        let patience = settings.confirm_timeout;
        let drainer = Drainer { shared: shared.clone(), holder, reader, patience, is_proved: false, is_left: false };
        draining.spawn(watch.run(stop.clone()));
        draining.spawn(drainer.run(stop.clone()));
        draining.close();
        Ok(Self { shared, stop, draining })
    }
}

impl Publish for Spooled {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            if self.shared.may_publish() && self.shared.published(message.clone(), self.shared.confirm_timeout).await {
                return Ok(());
            }
            let spooled = self.shared.spool.insert(SPOOL, message).await;
            spooled.map_err(|error| PublishError::Storage(error.to_string()))
        })
    }

    fn readiness(&self) -> Result<String, String> {
        let Shared { open, waiting, spool, broker, .. } = &*self.shared;
        match (open.load(Ordering::Relaxed), waiting.load(Ordering::Relaxed)) {
            (false, 0) => Ok("ready".to_owned()),
            (false, waiting) => Ok(format!("ready; {waiting} events of an outage are on their way to the broker")),
            (true, waiting) => {
                let outage = broker.obstacle().unwrap_or("the broker does not confirm in time");
                match spool.obstacle() {
                    Some(obstacle) => Err(format!("{outage}, and {obstacle}")),
                    None => Ok(format!("ready; {outage}: events are kept on disk, {waiting} so far")),
                }
            }
        }
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.stop.cancel();
            if timeout(LANDING_TIMEOUT, self.draining.wait()).await.is_err() {
                warn!(
                    "the spool was still being drained when the program stopped; the rest is handed over by the next"
                );
            }
            self.shared.broker.close().await;
        })
    }
}

impl Shared {
    fn may_publish(&self) -> bool {
        if let Some(obstacle) = self.broker.obstacle() {
            self.open(obstacle);
        }
        !self.open.load(Ordering::Relaxed)
    }

    /// Whether the broker has confirmed the message, in time.
    async fn published(&self, message: Message, within: Duration) -> bool {
        match timeout(within, self.broker.publish(message)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => self.open(&error.to_string()),
            Err(_) => self.open("it does not confirm in time"),
        }
        false
    }

    fn open(&self, reason: &str) {
        if !self.open.swap(true, Ordering::Relaxed) {
            warn!(reason, "the broker does not take events: they are kept on disk until it does");
        }
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        self.spool.file.failed(error)
    }

    fn close(&self) {
        if self.open.swap(false, Ordering::Relaxed) {
            info!("the broker takes events again");
        }
    }
}

/// Hands the spool's events to the broker.
struct Drainer {
    shared: Arc<Shared>,
    holder: Holder,
    reader: SqliteConnection,
    /// How long the broker has for the next try.
    patience: Duration,
    /// Whether all of the last try was confirmed.
    is_proved: bool,
    /// Whether events may have been left that are taken and not settled.
    is_left: bool,
}

impl Drainer {
    async fn run(mut self, stop: CancellationToken) {
        let mut rounds = every(DRAIN_EVERY);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            // What is under way when the program stops has as long as anything.
            let within = self.shared.confirm_timeout;
            let too_late = async {
                stop.cancelled().await;
                sleep(within).await;
            };
            tokio::select! {
                done = self.round() => if let Err(error) = done {
                    warn!(%error, "the spool cannot be drained; will try again");
                    sleep(AGAIN).await;
                },
                () = too_late => break,
            }
        }
        // What it was broken off at. Where that fails, it is found when this process is gone.
        let _ = self.release_all().await;
    }

    /// Hands over a few, or one if that is to show whether the broker takes any.
    async fn round(&mut self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        if shared.broker.obstacle().is_some() {
            return Ok(());
        }
        if self.is_left {
            self.release_all().await?;
            self.is_left = false;
        }
        let is_open = shared.open.load(Ordering::Relaxed);
        let waiting = messages::has_any(&mut self.reader, SPOOL).await.map_err(|error| shared.failed(&error))?;
        if !waiting {
            // Nothing to try it with: the next webhook will do.
            shared.close();
            return Ok(());
        }
        let (most, within) =
            if is_open && !self.is_proved { (1, self.patience) } else { (DRAIN_AT_ONCE, self.patience) };
        self.is_left = true;
        let taken = self.take(most).await?;
        let began = Instant::now();
        let handed = join_all(taken.iter().map(|stored| shared.published(stored.message.clone(), within))).await;
        self.is_proved = handed.iter().all(|confirmed| *confirmed);
        if !self.is_proved {
            self.patience = (within * 2).min(LONGEST_TRY);
        } else if began.elapsed() < shared.confirm_timeout && !taken.is_empty() {
            // One that confirms, but slower than a webhook can wait, gets everything from here.
            shared.close();
            self.patience = shared.confirm_timeout;
        }
        self.settle(&taken, &handed).await?;
        self.is_left = false;
        Ok(())
    }

    async fn take(&self, most: usize) -> Result<Vec<Stored>, StoreError> {
        let holder = self.holder.name.clone();
        let taken = self
            .shared
            .spool
            .write(move |tx| Box::pin(async move { messages::take(tx, SPOOL, &holder, 0..=i64::MAX, most).await }));
        taken.await
    }

    /// Removes what was handed over. The rest goes to the end: what the broker takes is not to wait for what it does not.
    async fn settle(&self, taken: &[Stored], handed: &[bool]) -> Result<(), StoreError> {
        let (confirmed, rest): (Vec<_>, Vec<_>) =
            taken.iter().map(|stored| stored.seq).zip(handed).partition(|(_, confirmed)| **confirmed);
        let seqs = |of: Vec<(i64, &bool)>| of.into_iter().map(|(seq, _)| seq).collect::<Vec<_>>();
        let (confirmed, rest) = (seqs(confirmed), seqs(rest));
        let settled = self.shared.spool.write(|tx| {
            Box::pin(async move {
                messages::delete(tx, confirmed).await?;
                for seq in rest {
                    messages::relocate(tx, seq, SPOOL, 0).await?;
                }
                Ok(())
            })
        });
        settled.await
    }

    async fn release_all(&self) -> Result<(), StoreError> {
        let holder = self.holder.name.clone();
        self.shared.spool.write(|tx| Box::pin(async move { messages::release_all(tx, &holder).await })).await
    }
}

/// Looks after the file, however long the broker takes.
struct Watch {
    shared: Arc<Shared>,
    /// The drainer's name in the file.
    ours: String,
    reader: SqliteConnection,
}

impl Watch {
    async fn run(mut self, stop: CancellationToken) {
        let mut rounds = every(LOOK_AROUND);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if let Err(error) = self.look_around().await {
                warn!(%error, "the spool cannot be looked after; will try again");
            }
        }
    }

    /// Counts what waits, and frees what a process had that died.
    async fn look_around(&mut self) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let folder = shared.spool.file.holders();
        let holders = messages::holders(&mut self.reader).await.map_err(|error| shared.failed(&error))?;
        for holder in holders {
            if holder != self.ours && holder::is_gone(&folder, &holder) {
                let gone = holder.clone();
                shared.spool.write(|tx| Box::pin(async move { messages::release_all(tx, &gone).await })).await?;
                holder::forget(&folder, &holder);
            }
        }
        let depth = messages::depth(&mut self.reader, SPOOL).await.map_err(|error| shared.failed(&error))?;
        shared.waiting.store(depth.messages, Ordering::Relaxed);
        let age = depth.oldest.map_or(0.0, |at| (Utc::now() - at).as_seconds_f64().max(0.0));
        gauge!("rollcall_spool_events").set(depth.messages as f64);
        gauge!("rollcall_spool_oldest_seconds").set(age);
        gauge!("rollcall_spool_bytes").set(depth.bytes as f64);
        gauge!("rollcall_spool_open").set(f64::from(u8::from(shared.open.load(Ordering::Relaxed))));
        Ok(())
    }
}

fn every(period: Duration) -> Interval {
    let mut rounds = interval(period);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}
