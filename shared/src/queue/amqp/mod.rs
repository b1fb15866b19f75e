//! The queue on RabbitMQ. No AMQP type leaves this module.
//!
//! - [`topology`]: which exchanges and queues there are, and why;
//! - [`confirms`]: how anything is published: confirmed; [`silence`]: whether a channel still confirms anything;
//! - [`publisher`]: webhooks in;
//! - [`consumer`]: deliveries out; [`acks`] says what is done;
//! - [`drain`]: messages out for somebody else than their worker;
//! - [`properties`]: a message as AMQP has it;
//! - [`depths`](mod@depths): how much is in the queues;
//! - [`inspection`]: whether all of it is as it should be;
//! - [`broker`]: getting there.

mod acks;
mod broker;
mod confirms;
mod consumer;
mod depths;
mod drain;
mod inspection;
mod properties;
mod publisher;
mod silence;
mod topology;
mod version;

use futures_util::future::BoxFuture;

use self::broker::Broker;
#[cfg(feature = "management")]
pub(super) use self::broker::vhost;
use self::drain::AmqpDrain;
pub(super) use self::publisher::Publisher;
use super::drain::{Drain, Drained};
use super::spool::Spooled;
use super::{Backend, Consumer, Depths, Inspection, Message, Publish, PublishError, QueueError, SendTo, Subscription};
use crate::config::{self, Settings};
use crate::event::WorkerName;

/// RabbitMQ, under the prefix of the settings.
pub(super) struct Amqp {
    broker: Broker,
}

impl Amqp {
    /// `name` is shown to the broker's operator.
    ///
    /// # Errors
    /// The URL is not one of a broker.
    pub(super) fn new(settings: &config::Queue, name: &str) -> Result<Self, QueueError> {
        Ok(Self { broker: Broker::new(settings, name)? })
    }
}

impl Backend for Amqp {
    fn publisher<'a>(&'a self, settings: &'a config::Ingress) -> BoxFuture<'a, Result<Box<dyn Publish>, QueueError>> {
        Box::pin(async {
            let publisher = Publisher::start(self.broker.clone()).await?;
            Ok(Box::new(Spooled::start(publisher, settings).await?) as Box<dyn Publish>)
        })
    }

    fn consumer(&self, subscription: Subscription) -> BoxFuture<'_, Result<Consumer, QueueError>> {
        Box::pin(consumer::start(self.broker.clone(), subscription))
    }

    fn sender(&self) -> BoxFuture<'_, Result<Box<dyn SendTo>, QueueError>> {
        Box::pin(async { Ok(Box::new(Publisher::start(self.broker.clone()).await?) as Box<dyn SendTo>) })
    }

    fn drain<'a>(&'a self, drained: &'a Drained) -> BoxFuture<'a, Result<Drain, QueueError>> {
        Box::pin(async { Ok(Drain::new(AmqpDrain::open(self.broker.clone(), drained).await?)) })
    }

    fn depths<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<Depths, QueueError>> {
        Box::pin(async {
            let connection = self.broker.connect().await?;
            let depths = depths::depths(&self.broker, &connection, settings).await?;
            self.broker.close(&connection).await;
            Ok(depths)
        })
    }

    fn inspect<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<Inspection, QueueError>> {
        Box::pin(async { inspection::inspect(&self.broker, settings).await.map(Inspection::Broker) })
    }

    fn delete<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(topology::delete_all(&self.broker, settings))
    }
}

impl SendTo for Publisher {
    fn send(&self, worker: WorkerName, message: Message) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(self.publish_to_worker(worker, message))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(Publisher::close(self))
    }
}
