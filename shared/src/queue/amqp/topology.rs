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

use std::sync::Arc;
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ErrorKind, ExchangeKind};

use super::broker::Broker;
use crate::config::{RetrySchedule, Settings};
use crate::event::WorkerName;
use crate::queue::QueueError;

/// How often a message may come back to the worker's own queue before the broker takes it for dead. One that comes back
/// at all is moved before any rule sees it, so this only bounds what kills a process before that.
const DELIVERY_LIMIT: i64 = 20;
/// How often a message may take the process that has it, alone, along.
const SUSPECT_DELIVERY_LIMIT: i64 = 3;
/// RabbitMQ 4 drops after 20 deliveries unless told otherwise; a dead letter may wait out any outage.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;

/// The queues in which a worker's failed events wait: one for each delay, shortest first.
#[derive(Debug, Clone)]
pub(super) struct Retries {
    pub(super) worker: WorkerName,
    pub(super) delays: Arc<[Duration]>,
}

impl Retries {
    pub(super) fn of(worker: WorkerName, schedule: &RetrySchedule) -> Self {
        Self { worker, delays: schedule.delays().into() }
    }
}

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

    pub(super) fn unrouted(&self) -> String {
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

    /// Everything that an event needs to be kept: the exchanges, each worker's own queues, and the retry queues of one.
    pub(super) async fn declare(
        &self,
        broker: &Broker,
        connection: &Connection,
        retries: Option<&Retries>,
    ) -> Result<(), QueueError> {
        let mut declare = Declare::on(broker, connection).await?;
        self.declare_on(&mut declare).await?;
        match retries {
            Some(Retries { worker, delays }) => self.declare_retries_on(&mut declare, *worker, delays).await,
            None => Ok(()),
        }
    }

    async fn declare_on(&self, declare: &mut Declare<'_>) -> Result<(), QueueError> {
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

    async fn declare_retries_on(
        &self,
        declare: &mut Declare<'_>,
        worker: WorkerName,
        delays: &[Duration],
    ) -> Result<(), QueueError> {
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

    /// Everything there is under these settings: how much of it is as it should be, and what is not.
    ///
    /// # Errors
    /// The broker does not answer any more.
    pub(super) async fn declare_all(
        &self,
        broker: &Broker,
        connection: &Connection,
        settings: &Settings,
    ) -> Result<(usize, Vec<QueueError>), QueueError> {
        let mut declare = Declare::on(broker, connection).await?;
        declare.faults = Some(Vec::new());
        self.declare_on(&mut declare).await?;
        for worker in WorkerName::ALL {
            self.declare_retries_on(&mut declare, worker, settings.retry(worker).delays()).await?;
        }
        Ok((declare.sound, declare.faults.unwrap_or_default()))
    }
}

/// Deletes every exchange and queue of these settings' prefix, with all that is in them.
///
/// # Errors
/// The broker cannot be reached, or does not let us.
pub(super) async fn delete_all(broker: &Broker, settings: &Settings) -> Result<(), QueueError> {
    let topology = Topology::new(broker.prefix());
    let connection = broker.connect().await?;
    let channel = broker.channel(&connection).await?;
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

/// Declarations, one after the other. The first that does not fit is the end of it, unless all faults are wanted.
struct Declare<'a> {
    broker: &'a Broker,
    connection: &'a Connection,
    channel: Channel,
    /// How many exchanges, queues and bindings are as they should be.
    sound: usize,
    faults: Option<Vec<QueueError>>,
}

impl<'a> Declare<'a> {
    async fn on(broker: &'a Broker, connection: &'a Connection) -> Result<Self, QueueError> {
        let channel = broker.channel(connection).await?;
        Ok(Self { broker, connection, channel, sound: 0, faults: None })
    }

    async fn exchange(&mut self, name: &str, kind: ExchangeKind, arguments: FieldTable) -> Result<(), QueueError> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = self.channel.exchange_declare(name.into(), kind, options, arguments).await;
        self.go_on(&format!("exchange {name}"), declared).await
    }

    async fn queue(&mut self, name: &str, mut arguments: FieldTable) -> Result<(), QueueError> {
        text(&mut arguments, "x-queue-type", "quorum");
        let declared = self.channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await;
        self.go_on(&format!("queue {name}"), declared.map(drop)).await
    }

    async fn binding(&mut self, queue: &str, exchange: &str, key: &str) -> Result<(), QueueError> {
        let options = QueueBindOptions::default();
        let bound =
            self.channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await;
        self.go_on(&format!("the binding of queue {queue}"), bound).await
    }

    async fn go_on(&mut self, name: &str, declared: lapin::Result<()>) -> Result<(), QueueError> {
        let Err(error) = declared else {
            self.sound += 1;
            return Ok(());
        };
        let fault = self.broker.error(name, &error);
        match &mut self.faults {
            Some(faults) if fault.is_final() => faults.push(fault),
            // What could not be declared cannot be bound either.
            Some(faults) if !faults.is_empty() && is_not_found(&error) => {}
            _ => return Err(fault),
        }
        // A declaration that does not fit ends its channel.
        self.channel = self.broker.channel(self.connection).await?;
        Ok(())
    }
}

pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    *error.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND)
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
