//! The ingress's side: webhooks in, confirmed by the broker or not published.
//!
//! Each connection to the broker has one task that publishes on it and waits for its confirms. lapin reports from a thread of
//! its own, twice a message (sent, confirmed): that one task is woken once for many of them, where a task a message would be
//! woken for each, across threads. And lapin takes a message's delivery tag and queues its frames in two steps: two tasks on one
//! channel could swap between them, and be given each other's confirm.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::broker::{Backoff, Broker};
use super::topology::Topology;
use crate::event::WorkerName;
use crate::queue::{Message, PublishError, QueueError};

/// A broker works on one channel's messages one after the other, so a few channels share the load of one connection.
const CHANNELS: usize = 4;
/// How much may be on its way to the broker, in KiB: what a broker that takes nothing can make us hold.
const MAX_IN_FLIGHT_KIB: usize = 64 * 1024;
/// How long what is on its way may take when the program stops.
const LANDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes webhooks; keeps its connection up by itself until it is closed.
pub(in crate::queue) struct Publisher {
    /// None while there is no connection.
    session: watch::Receiver<Option<Arc<Session>>>,
    topology: Topology,
    in_flight: Arc<Semaphore>,
    stop: CancellationToken,
}

/// One connection's life.
struct Session {
    connection: Connection,
    channels: Vec<Channel>,
    /// To the task that publishes. What may be on its way at once bounds it.
    publishing: mpsc::UnboundedSender<Publishing>,
}

/// A message on its way to the broker: it gets there even if nobody waits for it any more.
struct Publishing {
    exchange: ShortString,
    routing_key: String,
    properties: BasicProperties,
    body: Bytes,
    outcome: oneshot::Sender<Result<(), PublishError>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Publisher {
    /// Connects, or goes on trying in the background.
    ///
    /// # Errors
    /// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
    pub(super) async fn start(broker: Broker) -> Result<Self, QueueError> {
        let topology = Topology::new(broker.prefix());
        let first = match Session::open(&broker, &topology).await {
            Ok(session) => Some(Arc::new(session)),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                warn!(%error, "the broker is not there yet; will try again");
                None
            }
        };
        let (sender, session) = watch::channel(first);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(keep_open(broker, topology.clone(), sender)));
        Ok(Self { session, topology, in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)), stop })
    }

    /// Publishes a message. When this returns `Ok`, the broker has it on disk.
    ///
    /// If the caller does not wait for it, the message is published or it is not.
    ///
    /// # Errors
    /// There is no connection, or it went away with the message; the broker cannot store it. It may be stored all the same.
    pub(in crate::queue) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let routing_key = format!("{}.{}", message.source, message.event);
        self.publish_to(self.topology.events(), routing_key, message).await
    }

    /// Publishes a message to a worker's own queue, as [`publish`](Self::publish) does.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(super) async fn publish_to_worker(&self, worker: WorkerName, message: Message) -> Result<(), PublishError> {
        self.publish_to(self.topology.moves(), self.topology.queue(worker), message).await
    }

    async fn publish_to(&self, exchange: String, routing_key: String, message: Message) -> Result<(), PublishError> {
        let kib = u32::try_from(message.body.len() / 1024 + 1).unwrap_or(u32::MAX).min(MAX_IN_FLIGHT_KIB as u32);
        let in_flight = self.in_flight.clone().acquire_many_owned(kib).await.map_err(lost)?;
        let (outcome, published) = oneshot::channel();
        let publishing = Publishing {
            exchange: exchange.into(),
            routing_key,
            properties: message.properties(),
            body: message.body,
            outcome,
            _in_flight: in_flight,
        };
        let session = self.session.borrow().clone().ok_or_else(|| lost("there is none"))?;
        session.publishing.send(publishing).map_err(lost)?;
        published.await.map_err(lost)?
    }

    /// Why nothing can be published now.
    pub(in crate::queue) fn obstacle(&self) -> Option<&'static str> {
        match self.session.borrow().as_ref().filter(|session| session.is_up()) {
            None => Some("no connection to the broker"),
            Some(session) if session.connection.status().blocked() => Some("the broker takes no messages"),
            Some(_) => None,
        }
    }

    /// Waits for what is on its way, then closes the connection.
    pub(in crate::queue) async fn close(&self) {
        let everything = u32::try_from(MAX_IN_FLIGHT_KIB).expect("the constant fits");
        let landed = timeout(LANDING_TIMEOUT, self.in_flight.acquire_many(everything)).await;
        if landed.is_err() {
            warn!("some messages were not confirmed when the program stopped");
        }
        self.stop.cancel();
        let session = self.session.borrow().clone();
        if let Some(session) = session
            && let Err(error) = session.connection.close(200, "the program stops".into()).await
        {
            warn!(%error, "the connection to the broker did not close well");
        }
    }
}

fn lost(error: impl fmt::Display) -> PublishError {
    PublishError::Lost(error.to_string())
}

impl Publishing {
    /// For as long as the connection lasts, not for as long as somebody waits: lapin keeps what nobody waits for.
    async fn run(self, channel: Channel) {
        let Self { exchange, routing_key, properties, body, outcome, _in_flight } = self;
        let options = BasicPublishOptions::default();
        let confirmation = async {
            let sent = channel.basic_publish(exchange, routing_key.into(), options, &body, properties).await?;
            // It was copied, and the connection that it came on reads the next one into its memory.
            drop(body);
            sent.await
        };
        // Where nobody waits any more, the sender was told that the broker was too slow.
        let _ = outcome.send(match confirmation.await {
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(Confirmation::Nack(_) | Confirmation::NotRequested) => Err(PublishError::Refused),
            Err(error) => Err(lost(error)),
        });
    }
}

/// Publishes what comes on the channels in turn, until nobody can send any more and everything has its outcome.
async fn publish_all(channels: Vec<Channel>, mut publishing: mpsc::UnboundedReceiver<Publishing>) {
    let mut turn = channels.iter().cycle();
    let coming = stream::poll_fn(|cx| publishing.poll_recv(cx));
    let one = |one: Publishing| one.run(turn.next().expect("there are channels").clone());
    coming.for_each_concurrent(None, one).await;
}

impl Session {
    async fn open(broker: &Broker, topology: &Topology) -> Result<Self, QueueError> {
        let connection = broker.connect().await?;
        topology.declare(broker, &connection).await?;
        let mut channels = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            channels.push(broker.confirming_channel(&connection).await?);
        }
        let (publishing, to_publish) = mpsc::unbounded_channel();
        tokio::spawn(publish_all(channels.clone(), to_publish));
        Ok(Self { connection, channels, publishing })
    }

    fn is_up(&self) -> bool {
        self.connection.status().connected()
            && self.channels.iter().all(|channel| channel.status().connected())
            && !self.publishing.is_closed()
    }

    /// Returns when the connection or one of its channels is gone.
    async fn lost(&self) {
        let mut events = self.connection.events_listener();
        while self.is_up() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker takes no messages for now"),
                    Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                    _ => {}
                },
                // A channel can end without its connection, and without an event.
                () = sleep(Duration::from_millis(250)) => {}
            }
        }
    }
}

async fn keep_open(broker: Broker, topology: Topology, session: watch::Sender<Option<Arc<Session>>>) {
    loop {
        let current = session.borrow().clone();
        if let Some(current) = current {
            current.lost().await;
            warn!("the connection to the broker was lost");
            session.send_replace(None);
        }
        let mut backoff = Backoff::new();
        while session.borrow().is_none() {
            sleep(backoff.next()).await;
            match Session::open(&broker, &topology).await {
                Ok(opened) => {
                    info!("connected to the broker");
                    session.send_replace(Some(Arc::new(opened)));
                }
                Err(error) => warn!(%error, "the broker is not there; will try again"),
            }
        }
    }
}
