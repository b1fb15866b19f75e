//! The ingress's side: webhooks in, confirmed by the broker or not published; and what is sent back to workers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::broker::{Backoff, Broker};
use super::confirms::Confirms;
use super::topology::Topology;
use crate::event::WorkerName;
use crate::queue::{Message, PublishError, QueueError};

/// How long what is on its way may take when the program stops.
const LANDING_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes webhooks; keeps its connection up by itself until it is closed.
pub(in crate::queue) struct Publisher {
    /// None while there is no connection.
    session: watch::Receiver<Option<Arc<Confirms>>>,
    topology: Topology,
    stop: CancellationToken,
}

impl Publisher {
    /// Connects, or goes on trying in the background.
    ///
    /// # Errors
    /// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
    pub(super) async fn start(broker: Broker) -> Result<Self, QueueError> {
        let topology = Topology::new(broker.prefix());
        let first = match Confirms::open(broker.clone(), topology.clone(), None).await {
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
        Ok(Self { session, topology, stop })
    }

    /// Publishes a message. When this returns `Ok`, the broker has it on disk, in a queue.
    ///
    /// If the caller does not wait for it, the message is published or it is not.
    ///
    /// # Errors
    /// There is no connection, or it went away with the message; the broker cannot store it. It may be stored all the same.
    pub(in crate::queue) async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let routing_key = format!("{}.{}", message.source, message.event);
        self.publish_to(&self.topology.events(), &routing_key, &message).await
    }

    /// Publishes a message to a worker's own queue, as [`publish`](Self::publish) does.
    ///
    /// # Errors
    /// As [`publish`](Self::publish).
    pub(super) async fn publish_to_worker(&self, worker: WorkerName, message: Message) -> Result<(), PublishError> {
        self.publish_to(&self.topology.moves(), &self.topology.queue(worker), &message).await
    }

    async fn publish_to(&self, exchange: &str, routing_key: &str, message: &Message) -> Result<(), PublishError> {
        let session = self.session.borrow().clone().ok_or_else(|| lost("there is none"))?;
        session.publish(exchange, routing_key, &message.body, || message.properties(None)).await
    }

    /// Why nothing can be published now.
    pub(in crate::queue) fn obstacle(&self) -> Option<&'static str> {
        match self.session.borrow().as_ref().filter(|session| session.is_up()) {
            None => Some("no connection to the broker"),
            Some(session) if session.is_blocked() => Some("the broker takes no messages"),
            Some(_) => None,
        }
    }

    /// Waits for what is on its way, then closes the connection.
    pub(in crate::queue) async fn close(&self) {
        let session = self.session.borrow().clone();
        if let Some(session) = &session
            && !session.landed(LANDING_TIMEOUT).await
        {
            warn!("some messages were not confirmed when the program stopped");
        }
        self.stop.cancel();
        if let Some(session) = session {
            session.close("the program stops").await;
        }
    }
}

fn lost(error: impl fmt::Display) -> PublishError {
    PublishError::Lost(error.to_string())
}

async fn keep_open(broker: Broker, topology: Topology, session: watch::Sender<Option<Arc<Confirms>>>) {
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
            match Confirms::open(broker.clone(), topology.clone(), None).await {
                Ok(opened) => {
                    info!("connected to the broker");
                    session.send_replace(Some(Arc::new(opened)));
                }
                Err(error) if error.is_final() => error!(%error, "nothing can be published; will try again"),
                Err(error) => warn!(%error, "the broker is not there; will try again"),
            }
        }
    }
}
