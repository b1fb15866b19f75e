//! Whether everything on the broker is as it should be.

use lapin::options::QueueDeclareOptions;
use lapin::protocol::AMQPErrorKind;
use lapin::types::FieldTable;
use lapin::{Connection, ErrorKind, Queue};

use super::broker::Broker;
use super::topology::Topology;
use crate::config::Settings;
use crate::event::WorkerName;
use crate::queue::{Inspection, QueueError};

/// Declares everything, and looks at what is there.
///
/// # Errors
/// The broker is not there, goes away, or does not let us in.
pub(super) async fn inspect(broker: &Broker, settings: &Settings) -> Result<Inspection, QueueError> {
    let (connection, topology) = (broker.connect().await?, Topology::new(broker.prefix()));
    let broker_version = broker.version().await;
    let (sound, faults) = topology.declare_all(broker, &connection, settings).await?;
    let look = Look { broker, connection: &connection };
    let unrouted = look.at(&topology.unrouted()).await?.map_or(0, |queue| queue.message_count());
    let mut deserted = Vec::new();
    for worker in WorkerName::ALL {
        let queue = look.at(&topology.queue(worker)).await?;
        deserted.extend(queue.filter(|queue| queue.consumer_count() == 0).map(|_| worker));
    }
    broker.close(&connection).await?;
    Ok(Inspection {
        holder: format!("RabbitMQ at {}", broker.url()),
        broker_version,
        sound,
        faults,
        unrouted: unrouted.into(),
        deserted,
        disk: None,
    })
}

struct Look<'a> {
    broker: &'a Broker,
    connection: &'a Connection,
}

impl Look<'_> {
    /// A queue as it is; `None` where there is none, which is a fault that was told when it was declared.
    async fn at(&self, name: &str) -> Result<Option<Queue>, QueueError> {
        let channel = self.broker.channel(self.connection).await?;
        let passive = QueueDeclareOptions::durable().passive();
        match channel.queue_declare(name.into(), passive, FieldTable::default()).await {
            Ok(queue) => self.broker.close_channel(&channel).await.map(|()| Some(queue)),
            Err(error) if is_of_the_queue(&error) => Ok(None),
            Err(error) => Err(self.broker.error(name, &error)),
        }
    }
}

/// Whether only the channel has ended by it.
fn is_of_the_queue(error: &lapin::Error) -> bool {
    let ErrorKind::ProtocolError(error) = error.kind() else { return false };
    matches!(error.kind(), AMQPErrorKind::Soft(_))
}
