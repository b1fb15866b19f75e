//! How much is in the queues: a declaration that is passive declares nothing and tells.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};

use super::broker::Broker;
use super::topology::{Topology, is_not_found};
use crate::config::Settings;
use crate::event::WorkerName;
use crate::queue::{Depth, Depths, QueueError};

/// How much is in the queues of these settings.
///
/// # Errors
/// The broker went away, or does not let us.
pub(super) async fn depths(
    broker: &Broker,
    connection: &Connection,
    settings: &Settings,
) -> Result<Depths, QueueError> {
    let topology = Topology::new(broker.prefix());
    let mut look = Look::on(broker, connection);
    let mut workers = Vec::new();
    for worker in WorkerName::ALL {
        let own = look.at(&topology.queue(worker)).await?;
        let mut retrying = 0;
        for delay in settings.retry(worker).delays() {
            retrying += look.messages(&topology.retry(worker, *delay)).await?;
        }
        workers.push(Depth {
            worker,
            waiting: own.map_or(0, |own| own.messages),
            retrying,
            suspects: look.messages(&topology.suspect(worker)).await?,
            dead: look.messages(&topology.dead(worker)).await?,
            consumers: own.map(|own| own.consumers),
            oldest: None,
        });
    }
    Ok(Depths { workers, unrouted: look.messages(&topology.unrouted()).await? })
}

/// A queue as it is.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// Those that are ready.
    messages: u64,
    consumers: u64,
}

/// Looks at queues, on a new channel after each that is not there.
pub(super) struct Look<'a> {
    broker: &'a Broker,
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl<'a> Look<'a> {
    pub(super) fn on(broker: &'a Broker, connection: &'a Connection) -> Self {
        Self { broker, connection, channel: None }
    }

    /// How many messages of a queue are ready.
    pub(super) async fn messages(&mut self, queue: &str) -> Result<u64, QueueError> {
        Ok(self.at(queue).await?.map_or(0, |found| found.messages))
    }

    /// The queue of this name; `None` as long as nobody has declared it.
    async fn at(&mut self, queue: &str) -> Result<Option<Found>, QueueError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => self.broker.channel(self.connection).await?,
        };
        let passive = QueueDeclareOptions::durable().passive();
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(found) => {
                self.channel = Some(channel);
                let (messages, consumers) = (found.message_count().into(), found.consumer_count().into());
                Ok(Some(Found { messages, consumers }))
            }
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(self.broker.error(&format!("queue {queue}"), &error)),
        }
    }
}
