//! What a look at the queue finds.

use super::QueueError;
use crate::event::WorkerName;

/// What a look at the queue has found.
#[derive(Debug)]
pub struct Inspection {
    /// What holds the queue, and its version: `RabbitMQ 3.10.8 at amqp://…`, `the file data/queue.db`.
    pub holder: String,
    /// The broker's version, where it says one.
    pub broker_version: Option<String>,
    /// How many exchanges and queues are as they should be.
    pub sound: usize,
    /// Those that are not, and why.
    pub faults: Vec<QueueError>,
    /// How many messages no binding wanted.
    pub unrouted: u64,
    /// The workers whose queue nobody takes from; of a file that cannot be told.
    pub deserted: Vec<WorkerName>,
    /// How many bytes of the disk are free, where it is on one of this machine.
    pub free_bytes: Option<u64>,
}
