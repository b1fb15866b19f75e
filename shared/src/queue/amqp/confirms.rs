//! Publishing with confirms: what is said to be published, the broker has on disk, in a queue.
//!
//! A [`Confirms`] is a connection to the broker that publishes, and this module is the only one that has channels in confirm
//! mode: it makes them itself and gives none of them out, so that one task alone publishes on them and reads their confirms.
//! lapin takes a message's delivery tag and queues its frames in two steps: two tasks on one channel could swap between them,
//! and be given each other's confirm. Besides, lapin reports from a thread of its own, twice a message (sent, confirmed): one
//! task is woken once for many of them, where a task a message would be woken for each, across threads.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::broker::{Backoff, Broker, DONE};
use super::properties::short;
use super::topology::{Retries, Topology};
use crate::queue::{PublishError, QueueError};

/// A broker works on one channel's messages one after the other, so a few channels share the load of one connection.
const CHANNELS: usize = 4;
/// How much may be on its way to the broker, in KiB: what a broker that takes nothing can make us hold.
const MAX_IN_FLIGHT_KIB: usize = 64 * 1024;
/// How often to look whether all channels are still there: one can end without its connection, and without an event.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// A connection to the broker that publishes.
pub(super) struct Confirms {
    broker: Broker,
    topology: Topology,
    retries: Option<Retries>,
    connection: Connection,
    /// To see whether they are still there: it is the task that publishes on them.
    channels: Vec<Channel>,
    /// To the task that publishes. What may be on its way at once bounds it.
    publishing: mpsc::UnboundedSender<Publishing>,
    in_flight: Arc<Semaphore>,
    /// How often everything was declared anew.
    declared: AtomicU64,
    declaring: Mutex<()>,
}

/// A message on its way to the broker: it gets there even if nobody waits for it any more.
struct Publishing {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    outcome: oneshot::Sender<Result<Fate, PublishError>>,
    _in_flight: OwnedSemaphorePermit,
}

/// What the broker did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is on disk, in a queue.
    Taken,
    /// No queue took it, or that cannot be ruled out.
    Returned,
}

impl Confirms {
    /// Connects, and declares what the messages need that will be published.
    ///
    /// # Errors
    /// The broker is not there, refuses us, or has a queue with other arguments.
    pub(super) async fn open(broker: Broker, topology: Topology, retries: Option<Retries>) -> Result<Self, QueueError> {
        let connection = broker.connect().await?;
        topology.declare(&broker, &connection, retries.as_ref()).await?;
        let mut channels = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            let channel = broker.channel(&connection).await?;
            let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
            selected.map_err(|error| broker.error("publisher confirms", &error))?;
            channels.push(channel);
        }
        let (publishing, to_publish) = mpsc::unbounded_channel();
        tokio::spawn(publish_all(channels.clone(), to_publish));
        Ok(Self {
            broker,
            topology,
            retries,
            connection,
            channels,
            publishing,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)),
            declared: AtomicU64::new(0),
            declaring: Mutex::default(),
        })
    }

    /// Publishes a message with an id. When this returns `Ok`, the broker has it on disk, in a queue. It may take for ever.
    ///
    /// What no queue takes is published again once everything is declared anew. If the caller does not wait for it, the message
    /// is published or it is not.
    ///
    /// # Errors
    /// The connection went away with the message, or the broker cannot store it. It may be stored all the same.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &Bytes,
        properties: impl Fn() -> BasicProperties,
    ) -> Result<(), PublishError> {
        let mut backoff = Backoff::new();
        loop {
            let declared = self.declared.load(Ordering::Relaxed);
            let (outcome, published) = oneshot::channel();
            let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX).min(MAX_IN_FLIGHT_KIB as u32);
            let publishing = Publishing {
                exchange: short(exchange),
                routing_key: short(routing_key),
                properties: properties(),
                body: body.clone(),
                outcome,
                _in_flight: self.in_flight.clone().acquire_many_owned(kib).await.map_err(lost)?,
            };
            self.publishing.send(publishing).map_err(lost)?;
            match published.await.map_err(lost)?? {
                Fate::Taken => return Ok(()),
                Fate::Returned => self.declare_anew(declared).await.map_err(lost)?,
            }
            sleep(backoff.next()).await;
        }
    }

    /// Declares everything, unless somebody has since it was declared so often.
    async fn declare_anew(&self, declared: u64) -> Result<(), QueueError> {
        let _declaring = self.declaring.lock().await;
        if self.declared.load(Ordering::Relaxed) == declared {
            error!("the broker had no queue for a message: what Rollcall declares was deleted, and is declared anew");
            self.topology.declare(&self.broker, &self.connection, self.retries.as_ref()).await?;
            self.declared.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether anything can be published.
    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
            && self.channels.iter().all(|channel| channel.status().connected())
            && !self.publishing.is_closed()
    }

    /// Whether the broker takes nothing on this connection for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Returns when the connection or one of its channels is gone.
    pub(super) async fn lost(&self) {
        let mut events = self.connection.events_listener();
        while self.is_up() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker takes no messages for now"),
                    Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                    Some(_) => {}
                    // Nobody will tell any more.
                    None => sleep(LOOK_AGAIN).await,
                },
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Waits for what is on its way, for so long at most; whether all of it has got there.
    pub(super) async fn landed(&self, within: Duration) -> bool {
        let everything = u32::try_from(MAX_IN_FLIGHT_KIB).expect("the constant fits");
        timeout(within, self.in_flight.acquire_many(everything)).await.is_ok()
    }

    /// Closes the connection.
    pub(super) async fn close(&self, reason: &str) -> lapin::Result<()> {
        self.connection.close(DONE, reason.into()).await
    }
}

impl fmt::Debug for Confirms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirms").field("channels", &self.channels).finish_non_exhaustive()
    }
}

fn lost(error: impl fmt::Display) -> PublishError {
    PublishError::Lost(error.to_string())
}

/// A message whose confirm has come, or will not come.
struct Confirmed {
    id: Option<ShortString>,
    confirmation: lapin::Result<Confirmation>,
    outcome: oneshot::Sender<Result<Fate, PublishError>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Publishing {
    /// For as long as the connection lasts, not for as long as somebody waits: lapin keeps what nobody waits for.
    async fn run(self, channel: Channel) -> Confirmed {
        let Self { exchange, routing_key, properties, body, outcome, _in_flight } = self;
        let id = properties.message_id().clone();
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmation =
            async { channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await };
        Confirmed { id, confirmation: confirmation.await, outcome, _in_flight }
    }
}

/// Publishes what comes on the channels in turn, until nobody can send any more and everything has its outcome.
async fn publish_all(channels: Vec<Channel>, mut coming: mpsc::UnboundedReceiver<Publishing>) {
    let mut turn = channels.iter().cycle();
    let mut under_way = FuturesUnordered::new();
    let mut returns = Returns::default();
    let mut is_open = true;
    while is_open || !under_way.is_empty() {
        tokio::select! {
            one = coming.recv(), if is_open => match one {
                Some(one) => under_way.push(one.run(turn.next().expect("there are channels").clone())),
                None => is_open = false,
            },
            Some(first) = under_way.next() => {
                let mut ready = vec![first];
                while let Some(Some(next)) = under_way.next().now_or_never() {
                    ready.push(next);
                }
                returns.answer(ready);
            }
        }
    }
}

/// Messages that the broker has returned, and whose own confirms have not come yet.
///
/// The broker returns a message before it confirms it. lapin gives each return to whichever confirm completes next on that channel, so
/// a return is matched by its message's id. A message whose confirm came with nothing was returned only if an earlier confirm
/// came with its return: and those are looked at first, since they are woken, and so polled, in the order in which they complete. One
/// whose confirm came with another's return is in doubt, and counts as returned.
#[derive(Default)]
struct Returns(HashSet<ShortString>);

impl Returns {
    /// Answers messages whose confirms have come, in this order.
    fn answer(&mut self, confirmed: Vec<Confirmed>) {
        let came_with = confirmed.iter().filter_map(|one| match &one.confirmation {
            Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => {
                returned.properties.message_id().clone()
            }
            _ => None,
        });
        self.0.extend(came_with);
        for Confirmed { id, confirmation, outcome, .. } in confirmed {
            let was_returned = id.is_some_and(|id| self.0.remove(&id));
            // Where nobody waits any more, the sender was told that the broker was too slow.
            let _ = outcome.send(match confirmation {
                Ok(Confirmation::Ack(None)) if !was_returned => Ok(Fate::Taken),
                Ok(Confirmation::Ack(_)) => Ok(Fate::Returned),
                Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => Err(PublishError::Refused),
                Err(error) => Err(lost(error)),
            });
        }
    }
}
