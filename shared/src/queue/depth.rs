//! How much is in the queue, for an operator to see.

use chrono::{DateTime, Utc};

use crate::event::WorkerName;

/// How much is in all queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Depths {
    /// By worker.
    pub workers: Vec<Depth>,
    /// Messages that no binding wanted: somebody deleted one.
    pub unrouted: u64,
}

/// How much is in a worker's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Whose they are.
    pub worker: WorkerName,
    /// Messages that nobody has taken yet.
    pub waiting: u64,
    /// Messages that failed and wait for their next try.
    pub retrying: u64,
    /// Messages that came back from a process that went away.
    pub suspects: u64,
    /// Messages that died and are not in the database yet.
    pub dead: u64,
    /// Consumers of the worker's own queue; where the back end tells it.
    pub consumers: Option<u64>,
    /// When the oldest message that waits was taken in; where the back end tells it.
    pub oldest: Option<DateTime<Utc>>,
}
