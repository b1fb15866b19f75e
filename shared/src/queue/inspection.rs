//! What a look at the queue finds.

use super::QueueError;
use crate::event::WorkerName;

/// What a look at the queue has found.
#[derive(Debug)]
pub struct Inspection {
    /// What holds the queue: `RabbitMQ at amqp://…`, `the file data/queue.db`.
    pub holder: String,
    /// The broker's version, where it says one.
    pub broker_version: Option<String>,
    /// How many exchanges, queues and bindings are as they should be; a file is one thing.
    pub sound: usize,
    /// Those that are not, and why.
    pub faults: Vec<QueueError>,
    /// How many messages no binding wanted.
    pub unrouted: u64,
    /// The workers whose queue nobody takes from; of a file that cannot be told.
    pub deserted: Vec<WorkerName>,
    /// The disk that it is on, where that is one of this machine.
    pub disk: Option<Disk>,
}

/// A disk.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    /// How many bytes of it are free.
    pub free_bytes: u64,
    /// How many have to be: with fewer, no more events are taken.
    pub needed_bytes: u64,
}
