//! Durable messages between the ingress and the workers: over RabbitMQ, or in a file on this machine.
//!
//! `queue.url` chooses the back end ([`Queue::open`]). The ingress has a [`Publisher`]: what it says is published is durable.
//! A worker has a [`Consumer`]: it gives [`Delivery`]s, each of which is settled in one of a few ways: done, again later, to
//! the dead letters. What operators do goes by a [`Drain`], a [`Sender`], and [`Depths`]. While RabbitMQ is away, webhooks wait in a [`spool`]. [`Backend`] is what the back ends share; [`delivery`] says how deliveries behave in both.

mod amqp;
mod delivery;
mod depth;
mod drain;
mod embedded;
mod in_hand;
pub mod inspection;
#[cfg(feature = "management")]
pub mod management;
mod message;
mod spool;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::timeout;

pub use self::delivery::{Consumer, Delivery, Lane, Subscription, Suspects};
pub use self::depth::{Depth, Depths};
pub use self::drain::{Drain, Drained};
pub use self::in_hand::{Held, InHand};
pub use self::inspection::Inspection;
pub use self::message::{DeadKind, Death, MAX_BODY, MAX_ID, MAX_NAME, Message, Removed, Replay, Replayed};
use crate::config::{self, Settings};
use crate::event::WorkerName;

/// The queue of an installation. Cheap to clone.
#[derive(Clone)]
pub struct Queue(Arc<dyn Backend>);

/// What a back end does.
trait Backend: Send + Sync {
    fn publisher<'a>(&'a self, settings: &'a config::Ingress) -> BoxFuture<'a, Result<Box<dyn Publish>, QueueError>>;

    fn consumer(&self, subscription: Subscription) -> BoxFuture<'_, Result<Consumer, QueueError>>;

    fn sender(&self) -> BoxFuture<'_, Result<Box<dyn SendTo>, QueueError>>;

    fn drain<'a>(&'a self, drained: &'a Drained) -> BoxFuture<'a, Result<Drain, QueueError>>;

    fn depths<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<Depths, QueueError>>;

    fn inspect<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<Inspection, QueueError>>;

    fn delete<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<(), QueueError>>;
}

impl Queue {
    /// The queue that `queue.url` names. `name` is what this program is called there.
    ///
    /// # Errors
    /// The URL names none.
    pub fn open(settings: &config::Queue, name: &str) -> Result<Self, QueueError> {
        Ok(Self(match settings.url.sqlite_path() {
            Some(path) => Arc::new(embedded::Embedded::new(path)),
            None => Arc::new(amqp::Amqp::new(settings, name)?),
        }))
    }

    /// The ingress's side: it is there as soon as this returns, or tries on in the background.
    ///
    /// # Errors
    /// Waiting does not help, see [`QueueError::is_final`].
    pub async fn publisher(&self, settings: &config::Ingress) -> Result<Publisher, QueueError> {
        Ok(Publisher(self.0.publisher(settings).await?.into()))
    }

    /// Begins to take a worker's deliveries.
    ///
    /// # Errors
    /// Waiting does not help, see [`QueueError::is_final`].
    pub async fn consumer(&self, subscription: Subscription) -> Result<Consumer, QueueError> {
        self.0.consumer(subscription).await
    }

    /// What sends messages back to workers: it is there as soon as this returns, or tries on in the background.
    ///
    /// # Errors
    /// Waiting does not help, see [`QueueError::is_final`].
    pub async fn sender(&self) -> Result<Sender, QueueError> {
        Ok(Sender(self.0.sender().await?.into()))
    }

    /// Begins to take messages out for somebody else than their worker.
    ///
    /// # Errors
    /// The queue cannot be reached, or does not let us.
    pub async fn drain(&self, drained: &Drained) -> Result<Drain, QueueError> {
        self.0.drain(drained).await
    }

    /// How much is in the queue, with the retry queues of these settings.
    ///
    /// # Errors
    /// The queue cannot be reached, or does not let us.
    pub async fn depths(&self, settings: &Settings) -> Result<Depths, QueueError> {
        self.0.depths(settings).await
    }

    /// Looks whether these settings' queue is as it should be. On a broker, what is missing is declared, as any program does.
    ///
    /// # Errors
    /// It cannot be reached, or used at all.
    pub async fn inspect(&self, settings: &Settings) -> Result<Inspection, QueueError> {
        self.0.inspect(settings).await
    }

    /// Deletes everything of these settings' that is in the queue, and what holds it.
    ///
    /// # Errors
    /// It cannot be reached, or does not let us.
    pub async fn delete(&self, settings: &Settings) -> Result<(), QueueError> {
        self.0.delete(settings).await
    }
}

/// Publishes webhooks. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<dyn Publish>);

/// What a back end does for the ingress.
trait Publish: Send + Sync {
    /// When this returns `Ok`, the message is on disk. It may take for ever.
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PublishError>>;

    /// How webhooks can be taken now, or why they cannot.
    fn readiness(&self) -> Result<String, String>;

    /// Waits for what is on its way, and ends.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Publisher {
    /// Publishes a message. When this returns `Ok`, it is durable.
    ///
    /// # Errors
    /// It has not become so within `limit`, or was refused. The message may be stored all the same.
    pub async fn publish(&self, message: Message, limit: Duration) -> Result<(), PublishError> {
        timeout(limit, self.0.publish(message)).await.unwrap_or(Err(PublishError::Timeout))
    }

    /// How webhooks can be published now.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn readiness(&self) -> Result<String, String> {
        self.0.readiness()
    }

    /// Waits for what is on its way, then closes the connection.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// Sends messages back to workers. Cheap to clone.
#[derive(Clone)]
pub struct Sender(Arc<dyn SendTo>);

/// What a back end does to send a message to a worker's own queue.
trait SendTo: Send + Sync {
    /// When this returns `Ok`, the message is on disk. It may take for ever.
    fn send(&self, worker: WorkerName, message: Message) -> BoxFuture<'_, Result<(), PublishError>>;

    /// Waits for what is on its way, and ends.
    fn close(&self) -> BoxFuture<'_, ()>;
}

impl Sender {
    /// Puts a message at the end of a worker's own queue. When this returns `Ok`, it is durable there.
    ///
    /// # Errors
    /// It has not become so within `limit`, or was refused. The message may be stored all the same.
    pub async fn send(&self, worker: WorkerName, message: Message, limit: Duration) -> Result<(), PublishError> {
        timeout(limit, self.0.send(worker, message)).await.unwrap_or(Err(PublishError::Timeout))
    }

    /// Waits for what is on its way, then closes the connection.
    pub async fn close(&self) {
        self.0.close().await;
    }
}

/// Why a message may not be durable: it is safe to publish it again.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It took too long.
    #[error("it was not on disk in time")]
    Timeout,
    /// The broker cannot store the message.
    #[error("the broker refused the message")]
    Refused,
    /// The connection went away with the message on it.
    #[error("the connection to the broker was lost: {0}")]
    Lost(String),
    /// The file that holds the queue has no room, or cannot be written to.
    #[error("{0}")]
    Storage(String),
}

/// Why the broker cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// `queue.url` is a URL, but not one of a broker.
    #[error(
        "setting queue.url is {0}: it is amqp://user:password@host:5672/%2f or amqps://…, with commas between several hosts"
    )]
    Url(String),
    /// The broker is there and does not let us in: waiting does not help.
    #[error(
        "the broker at {url} refuses the connection ({reason}): check the user, password and virtual host of queue.url"
    )]
    Refused {
        /// The broker's URL, without its password.
        url: String,
        /// What it said.
        reason: String,
    },
    /// The broker lets us in, and does not let us use what is ours: waiting does not help.
    #[error(
        "the broker at {url} does not let us use {name} ({reason}): \
         give the user of queue.url the permissions configure, write and read for everything that begins with queue.prefix"
    )]
    Forbidden {
        /// The broker's URL, without its password.
        url: String,
        /// The queue's or exchange's name.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// A queue or exchange of ours exists and is different: waiting does not help.
    #[error(
        "{name} exists on the broker with other arguments ({reason}): \
         delete it there once it is empty, or choose another queue.prefix"
    )]
    Mismatch {
        /// The queue's or exchange's name.
        name: String,
        /// What the broker said.
        reason: String,
    },
    /// The file that holds the queue cannot be used: waiting does not help.
    #[error("the queue file {path} cannot be used: {reason}; {way_out}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        way_out: &'static str,
    },
    /// The file that holds the queue could not be written to just now.
    #[error("{0}")]
    Storage(String),
    /// The broker is not there, went away, or has no room for us: it is tried again.
    #[error("the broker at {url} cannot be used now: {reason}")]
    Unavailable {
        /// The broker's URL, without its password.
        url: String,
        /// What went wrong.
        reason: String,
    },
}

impl QueueError {
    /// Whether it is no use to try again without changing something.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Unavailable { .. } | Self::Storage(_))
    }
}

/// The name of this machine.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}
