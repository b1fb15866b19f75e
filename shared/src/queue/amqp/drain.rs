//! Messages out of the broker's queues for somebody else than their worker: got one by one, so that none is here that was not
//! asked for.

use std::collections::VecDeque;

use futures_util::future::BoxFuture;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::{Channel, Connection};

use super::broker::Broker;
use super::depths::Look;
use super::properties;
use super::topology::Topology;
use crate::event::WorkerName;
use crate::queue::drain::{Drained, MOST_BYTES, TakeOut};
use crate::queue::{Message, QueueError, Removed};

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
        topology.declare(&broker, &connection).await?;
        let mut queues = VecDeque::new();
        match drained {
            Drained::Dead => {
                let dead = |worker| Source { worker, queue: topology.dead(worker), left: u64::MAX };
                queues.extend(WorkerName::ALL.map(dead));
            }
            Drained::Waiting(worker, retry) => {
                topology.declare_retries(&broker, &connection, *worker, retry.delays()).await?;
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

    /// The next message of the first queue.
    async fn get(&mut self) -> Result<Option<Removed>, QueueError> {
        let Some(Source { worker, queue, left }) = self.queues.front_mut().filter(|source| source.left > 0) else {
            return Ok(None);
        };
        let got = self.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await;
        let Some(got) = got.map_err(|error| self.broker.error(&format!("queue {queue}"), &error))? else {
            return Ok(None);
        };
        *left -= 1;
        let delivery = got.delivery;
        self.unconfirmed = Some(delivery.delivery_tag);
        Ok(Some(Removed {
            worker: *worker,
            death: properties::read_death(&delivery.properties),
            headers: properties::headers(&delivery.properties),
            message: Message::read(&delivery.properties, delivery.data),
        }))
    }
}

impl TakeOut for AmqpDrain {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Removed>, QueueError>> {
        Box::pin(async move {
            let (mut removed, mut bytes) = (Vec::new(), 0);
            let mut empty = 0;
            while removed.len() < most && bytes < MOST_BYTES && empty < self.queues.len() {
                match self.get().await? {
                    Some(one) => {
                        bytes += one.message.body.len();
                        removed.push(one);
                    }
                    None => {
                        self.queues.rotate_left(1);
                        empty += 1;
                    }
                }
            }
            Ok(removed)
        })
    }

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), QueueError>> {
        Box::pin(async {
            let Some(tag) = self.unconfirmed.take() else { return Ok(()) };
            let acked = self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await;
            acked.map_err(|error| self.broker.error("an acknowledgement", &error))
        })
    }
}
