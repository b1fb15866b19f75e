//! The ingress's side: webhooks in, confirmed by the broker or not published.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, Connection, Event};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::broker::{Backoff, Broker};
use super::topology::Topology;
use super::{Message, QueueError};
use crate::config;

/// A broker works on one channel's messages one after the other, so a few channels share the load of one connection.
const CHANNELS: usize = 4;
/// How much may be on its way to the broker, in KiB: what a broker that takes nothing can make us hold.
const MAX_IN_FLIGHT_KIB: usize = 64 * 1024;

/// Publishes webhooks. Cheap to clone; keeps its connection up by itself until it is closed.
#[derive(Clone)]
pub struct Publisher {
    events: Arc<str>,
    /// None while there is no connection.
    session: watch::Receiver<Option<Arc<Session>>>,
    in_flight: Arc<Semaphore>,
    stop: CancellationToken,
}

/// One connection's life.
struct Session {
    connection: Connection,
    channels: Vec<Channel>,
    turn: AtomicUsize,
}

/// Why a message may not be durable: it is safe to publish it again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker has not confirmed in time, or there is no connection to it.
    #[error("the broker did not confirm in time")]
    Timeout,
    /// The broker cannot store the message.
    #[error("the broker refused the message")]
    Refused,
    /// The connection went away with the message on it.
    #[error("the connection to the broker was lost: {0}")]
    Lost(String),
}

impl Publisher {
    /// Connects, or goes on trying in the background. `name` is shown to the broker's operator.
    ///
    /// # Errors
    /// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
    pub async fn start(settings: &config::Queue, name: &str) -> Result<Self, QueueError> {
        let broker = Broker::new(settings, name)?;
        let topology = Topology::new(broker.prefix());
        let events = topology.events().into();
        let first = match Session::open(&broker, &topology).await {
            Ok(session) => Some(Arc::new(session)),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                warn!(%error, "the broker is not there yet, trying on");
                None
            }
        };
        let (sender, session) = watch::channel(first);
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(keep_open(broker, topology, sender)));
        Ok(Self { events, session, in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)), stop })
    }

    /// Publishes a message. When this returns `Ok`, the broker has it on disk.
    ///
    /// The publishing runs to its end even if the caller does not wait for it.
    ///
    /// # Errors
    /// The broker has not confirmed within `limit`, or has refused. The message may be stored all the same.
    pub async fn publish(&self, message: Message, limit: Duration) -> Result<(), PublishError> {
        let publishing = tokio::spawn(self.clone().publish_confirmed(message, limit));
        match timeout(limit, publishing).await {
            Ok(Ok(published)) => published,
            Ok(Err(panic)) => Err(PublishError::Lost(panic.to_string())),
            Err(_) => Err(PublishError::Timeout),
        }
    }

    /// Whether there is a connection, and the broker takes messages.
    pub fn is_connected(&self) -> bool {
        let session = self.session.borrow();
        session.as_ref().is_some_and(|session| session.is_up() && !session.connection.status().blocked())
    }

    /// Waits for what is on its way, then closes the connection.
    pub async fn close(self) {
        let everything = u32::try_from(MAX_IN_FLIGHT_KIB).expect("the constant fits");
        let landed = timeout(Duration::from_secs(5), self.in_flight.acquire_many(everything)).await;
        if landed.is_err() {
            warn!("some messages were not confirmed when the program stopped; their senders were told so");
        }
        self.stop.cancel();
        let session = self.session.borrow().clone();
        if let Some(session) = session
            && let Err(error) = session.connection.close(200, "the program stops".into()).await
        {
            warn!(%error, "the connection to the broker did not close well");
        }
    }

    /// Waits for a connection up to `limit`, for the broker's confirm as long as the connection lasts: lapin keeps what
    /// nobody waits for.
    async fn publish_confirmed(mut self, message: Message, limit: Duration) -> Result<(), PublishError> {
        let kib = u32::try_from(message.body.len() / 1024 + 1).unwrap_or(u32::MAX).min(MAX_IN_FLIGHT_KIB as u32);
        let ready = async {
            let permit = self.in_flight.clone().acquire_many_owned(kib).await;
            let session = self.session.wait_for(Option::is_some).await.ok().and_then(|session| session.clone());
            (permit, session)
        };
        let Ok((_permit, Some(session))) = timeout(limit, ready).await else { return Err(PublishError::Timeout) };
        let lost = |error: lapin::Error| PublishError::Lost(error.to_string());
        let routing_key = format!("{}.{}", message.source, message.event);
        let published = session.channel().basic_publish(
            self.events.as_ref().into(),
            routing_key.into(),
            BasicPublishOptions::default(),
            &message.body,
            message.properties(),
        );
        let confirm = published.await.map_err(lost)?;
        drop(message);
        match confirm.await.map_err(lost)? {
            Confirmation::Ack(_) => Ok(()),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(PublishError::Refused),
        }
    }
}

impl Session {
    async fn open(broker: &Broker, topology: &Topology) -> Result<Self, QueueError> {
        let connection = broker.connect().await?;
        topology.declare(broker, &connection).await?;
        let mut channels = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            channels.push(broker.confirming_channel(&connection).await?);
        }
        Ok(Self { connection, channels, turn: AtomicUsize::new(0) })
    }

    fn channel(&self) -> &Channel {
        &self.channels[self.turn.fetch_add(1, Ordering::Relaxed) % CHANNELS]
    }

    fn is_up(&self) -> bool {
        self.connection.status().connected() && self.channels.iter().all(|channel| channel.status().connected())
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
                Err(error) => warn!(%error, "the broker is not there, trying on"),
            }
        }
    }
}
