//! What is in the queues. Nobody takes from them during a run: what was accepted is there in the end and can be counted.

use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use rollcall_shared::queue::Queue;
use tokio::time::{Instant, sleep};

use crate::installation::Installation;

/// A quorum queue tells its length a little late.
const PATIENCE: Duration = Duration::from_secs(10);

/// The queues that the load ends in, and the one for what is lost on the way.
pub struct Queues {
    channel: Channel,
    names: [String; 3],
    /// Open as long as its channel is used.
    _connection: Connection,
}

impl Queues {
    /// Declares everything that the installation has on the broker.
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn declare(installation: &Installation) -> anyhow::Result<Self> {
        let settings = installation.load_settings();
        Queue::open(&settings.queue, "rollcall-bench")?.publisher(&settings.ingress).await?.close().await;
        let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let names = ["attendance", "rooms", "unrouted"].map(|name| format!("{}.{name}", installation.prefix));
        Ok(Self { channel, names, _connection: connection })
    }

    /// How many messages there are, once that many are `expected` or do not come; then there are none.
    ///
    /// # Errors
    /// The broker is not there.
    pub async fn count_and_purge(&self, expected: u64) -> anyhow::Result<u64> {
        let deadline = Instant::now() + PATIENCE;
        let mut count = self.count().await?;
        while count != expected && Instant::now() < deadline {
            sleep(Duration::from_millis(200)).await;
            count = self.count().await?;
        }
        for name in &self.names {
            self.channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default()).await?;
        }
        Ok(count)
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let mut count = 0;
        for name in &self.names {
            let passive = QueueDeclareOptions::durable().passive();
            let queue = self.channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await?;
            count += u64::from(queue.message_count());
        }
        Ok(count)
    }
}
