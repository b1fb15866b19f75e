//! Messages out of the broker's queues for somebody else than their worker, a few at a time, so that none is here that was not asked
//! for.
//!
//! What is got one by one has a consumer tag each, and so an acknowledgement each, of which the broker holds back and drops what
//! [`acks`](super::acks) says. So only the first of a few is got, which tells how many are behind it, and those are consumed.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::timeout;

use super::broker::Broker;
use super::depths::Look;
use super::properties;
use super::topology::{Retries, Topology};
use crate::event::WorkerName;
use crate::queue::drain::{Drained, MOST_BYTES, TakeOut};
use crate::queue::{Message, QueueError, Removed};

/// How many are taken at once, and so how many bodies there may be beside [`MOST_BYTES`].
const A_FEW: u16 = 32;
/// How often a few are taken before what was taken is given: two commands to acknowledge them, of 32 that the broker has under way.
const TIMES: usize = 12;
/// How long to wait for a message that was there, and that somebody else may have taken.
const PATIENCE: Duration = Duration::from_secs(1);

/// On a connection of its own: what is unconfirmed is back in its queue when that ends.
pub(super) struct AmqpDrain {
    broker: Broker,
    _connection: Connection,
    channel: Channel,
    /// In the order in which they are emptied.
    queues: VecDeque<Source>,
    /// The last that was given.
    unconfirmed: Option<u64>,
}

/// A queue that is emptied.
#[derive(Debug)]
struct Source {
    worker: WorkerName,
    queue: String,
    /// How many of its messages are still to be taken out.
    left: u64,
}

impl AmqpDrain {
    pub(super) async fn open(broker: Broker, drained: &Drained) -> Result<Self, QueueError> {
        let topology = Topology::new(broker.prefix());
        let connection = broker.connect().await?;
        let retries = match drained {
            Drained::Dead => None,
            Drained::Waiting(worker, retry) => Some(Retries::of(*worker, retry)),
        };
        topology.declare(&broker, &connection, retries.as_ref()).await?;
        let mut queues = VecDeque::new();
        match drained {
            Drained::Dead => {
                let dead = |worker| Source { worker, queue: topology.dead(worker), left: u64::MAX };
                queues.extend(WorkerName::ALL.map(dead));
            }
            Drained::Waiting(worker, retry) => {
                let retries = retry.delays().iter().map(|delay| topology.retry(*worker, *delay));
                let all = [topology.queue(*worker)].into_iter().chain(retries).chain([topology.suspect(*worker)]);
                let mut look = Look::on(&broker, &connection);
                for queue in all {
                    let left = look.messages(&queue).await?;
                    queues.push_back(Source { worker: *worker, queue, left });
                }
            }
        }
        let channel = broker.channel(&connection).await?;
        Ok(Self { broker, _connection: connection, channel, queues, unconfirmed: None })
    }

    /// Some of the first queue's messages, `most` of them at most.
    async fn a_few(&mut self, most: u64) -> Result<Vec<Removed>, QueueError> {
        let Self { broker, channel, queues, unconfirmed, .. } = self;
        let Some(Source { worker, queue, left }) = queues.front_mut() else { return Ok(Vec::new()) };
        let failed = |error| broker.error(&format!("queue {queue}"), &error);
        let most = most.min(*left).min(A_FEW.into());
        if most == 0 {
            return Ok(Vec::new());
        }
        let first = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await.map_err(failed)?;
        let Some(first) = first else { return Ok(Vec::new()) };
        let behind = u64::from(first.message_count).min(most - 1);
        // Of about this size.
        let fitting = MOST_BYTES / first.delivery.data.len().max(1);
        let more = u16::try_from(behind).unwrap_or(A_FEW).min(u16::try_from(fitting).unwrap_or(A_FEW));
        let mut deliveries = vec![first.delivery];
        if more > 0 {
            deliveries.extend(consume(channel, queue, more).await.map_err(failed)?);
        }
        *left -= deliveries.len() as u64;
        *unconfirmed = deliveries.last().map(|last| last.delivery_tag);
        Ok(deliveries.into_iter().map(|delivery| removed(*worker, delivery)).collect())
    }

    async fn ack(&self, tag: u64) -> lapin::Result<()> {
        self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await?;
        // Answered once the channel has passed it on to the queue, which hears of it before it hears that the channel is closed.
        self.channel.basic_qos(A_FEW, BasicQosOptions::default()).await
    }
}

/// The next `count` messages of a queue; fewer where somebody else takes some.
async fn consume(channel: &Channel, queue: &str, count: u16) -> lapin::Result<Vec<Delivery>> {
    channel.basic_qos(count, BasicQosOptions::default()).await?;
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;
    let mut deliveries = Vec::with_capacity(count.into());
    while deliveries.len() < usize::from(count) {
        match timeout(PATIENCE, consumer.next()).await {
            Ok(Some(delivery)) => deliveries.push(delivery?),
            Ok(None) | Err(_) => break,
        }
    }
    channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
    // What had come before that.
    while let Some(delivery) = consumer.next().await {
        deliveries.push(delivery?);
    }
    Ok(deliveries)
}

fn removed(worker: WorkerName, delivery: Delivery) -> Removed {
    Removed {
        worker,
        death: properties::read_death(&delivery.properties),
        headers: properties::headers(&delivery.properties),
        message: Message::read(&delivery.properties, delivery.data),
    }
}

impl TakeOut for AmqpDrain {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Removed>, QueueError>> {
        Box::pin(async move {
            let (mut all, mut bytes) = (Vec::new(), 0);
            let (mut times, mut empty) = (0, 0);
            while all.len() < most && bytes < MOST_BYTES && times < TIMES && empty < self.queues.len() {
                let some = self.a_few((most - all.len()) as u64).await?;
                if some.is_empty() {
                    self.queues.rotate_left(1);
                    empty += 1;
                    continue;
                }
                times += 1;
                bytes += some.iter().map(|one| one.message.body.len()).sum::<usize>();
                all.extend(some);
            }
            Ok(all)
        })
    }

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async {
            let Some(tag) = self.unconfirmed.take() else { return Ok(()) };
            self.ack(tag).await.map_err(|error| self.broker.error("an acknowledgement", &error))
        })
    }
}
