//! The queue on RabbitMQ. No AMQP type leaves this module.
//!
//! - [`topology`]: which exchanges and queues there are, and why;
//! - [`publisher`]: webhooks in, confirmed;
//! - [`consumer`]: deliveries out; [`acks`] says what is done;
//! - [`properties`]: a message as AMQP has it;
//! - [`broker`]: getting there.

mod acks;
mod broker;
mod consumer;
mod properties;
mod publisher;
mod topology;

use futures_util::future::BoxFuture;

use self::broker::Broker;
pub(super) use self::publisher::Publisher;
use super::spool::Spooled;
use super::{Backend, Consumer, Publish, QueueError, Subscription};
use crate::config::{self, Settings};

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

    fn delete<'a>(&'a self, settings: &'a Settings) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(topology::delete_all(&self.broker, settings))
    }
}
