//! Which exchanges and queues there are on the broker, and why. Declaring them is idempotent; any program may do it.
//!
//! With the prefix `rollcall`:
//! - `rollcall.events`, the topic exchange that webhooks are published to as `<source>.<event>`. What no binding wants goes to
//!   its alternate exchange and so to the queue `rollcall.unrouted`: a missing binding loses nothing;
//! - `rollcall.<worker>`, what waits for the worker;
//! - `rollcall.<worker>.suspect`, what came back unacknowledged: taken one at a time, with a delivery limit, so that what
//!   kills processes dies alone;
//! - `rollcall.<worker>.retry.<delay>`, one queue a delay, since in a queue only the first message expires: nothing waits
//!   behind a longer delay;
//! - `rollcall.<worker>.dead`, what died;
//! - `rollcall.moves`, the direct exchange by which a worker moves messages between its queues: the default exchange has no
//!   alternate, so that a message for a queue that somebody deleted would be confirmed and gone.
//!
//! Every queue is a quorum queue, and dead-letters at least once.

use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::broker::Broker;
use crate::config::Settings;
use crate::event::WorkerName;
use crate::queue::{Depth, Depths, QueueError};

/// How often a message may come back to the worker's own queue before the broker takes it for dead. One that comes back
/// at all is moved before any rule sees it, so this only bounds what kills a process before that.
const DELIVERY_LIMIT: i64 = 20;
/// How often a message may take the process that has it, alone, along.
const SUSPECT_DELIVERY_LIMIT: i64 = 3;
/// RabbitMQ 4 drops after 20 deliveries unless told otherwise; a dead letter may wait out any outage.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// Names and declarations under one prefix.
#[derive(Debug, Clone)]
pub(super) struct Topology {
    prefix: String,
}

impl Topology {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    pub(super) fn events(&self) -> String {
        format!("{}.events", self.prefix)
    }

    pub(super) fn moves(&self) -> String {
        format!("{}.moves", self.prefix)
    }

    fn unrouted(&self) -> String {
        format!("{}.unrouted", self.prefix)
    }

    pub(super) fn queue(&self, worker: WorkerName) -> String {
        format!("{}.{worker}", self.prefix)
    }

    pub(super) fn suspect(&self, worker: WorkerName) -> String {
        format!("{}.{worker}.suspect", self.prefix)
    }

    pub(super) fn dead(&self, worker: WorkerName) -> String {
        format!("{}.{worker}.dead", self.prefix)
    }

    pub(super) fn retry(&self, worker: WorkerName, delay: Duration) -> String {
        let delay = match delay.subsec_millis() {
            0 => format!("{}s", delay.as_secs()),
            _ => format!("{}ms", delay.as_millis()),
        };
        format!("{}.{worker}.retry.{delay}", self.prefix)
    }

    /// Everything that an event needs to be kept: the exchanges and each worker's own queues.
    pub(super) async fn declare(&self, broker: &Broker, connection: &Connection) -> Result<(), QueueError> {
        let declare = Declare::on(broker, connection).await?;
        let (events, unrouted, moves) = (self.events(), self.unrouted(), self.moves());
        let mut alternate = FieldTable::default();
        text(&mut alternate, "alternate-exchange", &unrouted);

        declare.exchange(&unrouted, ExchangeKind::Fanout, FieldTable::default()).await?;
        declare.queue(&unrouted, delivery_limit(NO_DELIVERY_LIMIT)).await?;
        declare.binding(&unrouted, &unrouted, "").await?;
        declare.exchange(&events, ExchangeKind::Topic, alternate.clone()).await?;
        declare.exchange(&moves, ExchangeKind::Direct, alternate).await?;

        for worker in WorkerName::ALL {
            let (queue, suspect, dead) = (self.queue(worker), self.suspect(worker), self.dead(worker));
            declare.queue(&dead, delivery_limit(NO_DELIVERY_LIMIT)).await?;
            declare.queue(&suspect, dead_letters_to(&moves, &dead, delivery_limit(SUSPECT_DELIVERY_LIMIT))).await?;
            declare.queue(&queue, dead_letters_to(&moves, &dead, delivery_limit(DELIVERY_LIMIT))).await?;
            for name in [&queue, &suspect, &dead] {
                declare.binding(name, &moves, name).await?;
            }
            for event in worker.wants() {
                declare.binding(&queue, &events, &format!("*.{event}")).await?;
            }
        }
        Ok(())
    }

    /// The queues in which a worker's failed events wait.
    pub(super) async fn declare_retries(
        &self,
        broker: &Broker,
        connection: &Connection,
        worker: WorkerName,
        delays: &[Duration],
    ) -> Result<(), QueueError> {
        let declare = Declare::on(broker, connection).await?;
        let moves = self.moves();
        for delay in delays {
            let mut arguments = dead_letters_to(&moves, &self.queue(worker), FieldTable::default());
            let ttl = i64::try_from(delay.as_millis()).expect("the settings allow a month at most");
            arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(ttl));
            let retry = self.retry(worker, *delay);
            declare.queue(&retry, arguments).await?;
            declare.binding(&retry, &moves, &retry).await?;
        }
        Ok(())
    }
}

/// How much is in the queues: a declaration that is passive declares nothing and tells.
///
/// # Errors
/// The broker cannot be reached, or does not let us.
pub(super) async fn depths(
    broker: &Broker,
    connection: &Connection,
    settings: &Settings,
) -> Result<Depths, QueueError> {
    let topology = Topology::new(broker.prefix());
    let mut look = Look { broker, connection, channel: None };
    let mut workers = Vec::new();
    for worker in WorkerName::ALL {
        let (waiting, consumers) = look.at(&topology.queue(worker)).await?;
        let mut retrying = 0;
        for delay in settings.retry(worker).delays() {
            retrying += look.at(&topology.retry(worker, *delay)).await?.0;
        }
        workers.push(Depth {
            worker,
            waiting,
            retrying,
            suspects: look.at(&topology.suspect(worker)).await?.0,
            dead: look.at(&topology.dead(worker)).await?.0,
            in_flight: None,
            consumers: Some(consumers),
            oldest: None,
        });
    }
    Ok(Depths { workers, unrouted: look.at(&topology.unrouted()).await?.0 })
}

/// Looks at queues, on a new channel after each that is not there.
struct Look<'a> {
    broker: &'a Broker,
    connection: &'a Connection,
    channel: Option<Channel>,
}

impl Look<'_> {
    /// The messages of a queue that are ready, and its consumers. One that nobody has declared yet has neither.
    async fn at(&mut self, queue: &str) -> Result<(u64, u64), QueueError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => {
                let channel = self.connection.create_channel().await;
                channel.map_err(|error| self.broker.error("a channel", &error))?
            }
        };
        let passive = QueueDeclareOptions::durable().passive();
        match channel.queue_declare(queue.into(), passive, FieldTable::default()).await {
            Ok(found) => {
                self.channel = Some(channel);
                Ok((found.message_count().into(), found.consumer_count().into()))
            }
            Err(error) if is_not_found(&error) => Ok((0, 0)),
            Err(error) => Err(self.broker.error(&format!("queue {queue}"), &error)),
        }
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(error) if *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

/// Deletes every exchange and queue of these settings' prefix, with all that is in them.
///
/// # Errors
/// The broker cannot be reached, or does not let us.
pub(super) async fn delete_all(broker: &Broker, settings: &Settings) -> Result<(), QueueError> {
    let topology = Topology::new(broker.prefix());
    let connection = broker.connect().await?;
    let channel = broker.confirming_channel(&connection).await?;
    let mut queues = vec![topology.unrouted()];
    for worker in WorkerName::ALL {
        queues.extend([topology.queue(worker), topology.suspect(worker), topology.dead(worker)]);
        let delays = settings.retry(worker).delays().iter();
        queues.extend(delays.map(|delay| topology.retry(worker, *delay)));
    }
    for queue in &queues {
        let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await;
        deleted.map_err(|error| broker.error(queue, &error))?;
    }
    for exchange in [topology.events(), topology.moves(), topology.unrouted()] {
        let deleted = channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await;
        deleted.map_err(|error| broker.error(&exchange, &error))?;
    }
    Ok(())
}

/// Declarations on one channel. A declaration that does not fit ends the channel, and that is the end of declaring.
struct Declare<'a> {
    broker: &'a Broker,
    channel: Channel,
}

impl<'a> Declare<'a> {
    async fn on(broker: &'a Broker, connection: &Connection) -> Result<Self, QueueError> {
        let channel = connection.create_channel().await.map_err(|error| broker.error("a channel", &error))?;
        Ok(Self { broker, channel })
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind, arguments: FieldTable) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = self.channel.exchange_declare(name.into(), kind, options, arguments).await;
        declared.map_err(|error| self.broker.error(&format!("exchange {name}"), &error))
    }

    async fn queue(&self, name: &str, mut arguments: FieldTable) -> Result<(), QueueError> {
        text(&mut arguments, "x-queue-type", "quorum");
        let declared = self.channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await;
        declared.map(|_| ()).map_err(|error| self.broker.error(&format!("queue {name}"), &error))
    }

    async fn binding(&self, queue: &str, exchange: &str, key: &str) -> Result<(), QueueError> {
        let options = QueueBindOptions::default();
        let bound =
            self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await;
        bound.map_err(|error| self.broker.error(&format!("the binding of queue {queue}"), &error))
    }
}

fn delivery_limit(limit: i64) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(limit));
    arguments
}

/// At least once: the broker keeps the message until the other queue has it. That needs `reject-publish`.
fn dead_letters_to(exchange: &str, queue: &str, mut arguments: FieldTable) -> FieldTable {
    text(&mut arguments, "x-dead-letter-exchange", exchange);
    text(&mut arguments, "x-dead-letter-routing-key", queue);
    text(&mut arguments, "x-dead-letter-strategy", "at-least-once");
    text(&mut arguments, "x-overflow", "reject-publish");
    arguments
}

fn text(arguments: &mut FieldTable, name: &str, value: &str) {
    arguments.insert(name.into(), AMQPValue::LongString(value.into()));
}
