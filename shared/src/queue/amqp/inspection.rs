//! Whether everything on the broker is as it should be.

use super::broker::Broker;
use super::depths::depths;
use super::topology::Topology;
use crate::config::Settings;
use crate::queue::{Depths, QueueError, inspection};

/// Declares everything, and looks at what is there.
///
/// # Errors
/// The broker is not there, goes away, or does not let us in.
pub(super) async fn inspect(broker: &Broker, settings: &Settings) -> Result<inspection::Broker, QueueError> {
    let (connection, topology) = (broker.connect().await?, Topology::new(broker.prefix()));
    let version = broker.version().await;
    let (sound, faults) = topology.declare_all(broker, &connection, settings).await?;
    let Depths { workers, unrouted } = depths(broker, &connection, settings).await?;
    // A queue that is not there is a fault that was told when it was declared.
    let deserted = workers.iter().filter(|depth| depth.consumers == Some(0)).map(|depth| depth.worker);
    broker.close(&connection).await;
    let (url, deserted) = (broker.url().to_owned(), deserted.collect());
    Ok(inspection::Broker { url, version, sound, faults, unrouted, deserted })
}
