//! What a look at the queue finds.

use std::path::PathBuf;

use super::QueueError;
use crate::event::WorkerName;

/// What a look at the queue has found.
#[derive(Debug)]
pub enum Inspection {
    /// A broker, on which everything is declared that could be.
    Broker(Broker),
    /// A file that is whole.
    File(File),
    /// No file yet: the first program that uses it makes it.
    NoFile(PathBuf),
}

/// What was found on a broker.
#[derive(Debug)]
pub struct Broker {
    /// Its URL, without the password.
    pub url: String,
    /// Its version, where it says one.
    pub version: Option<String>,
    /// How many exchanges, queues and bindings are as they should be.
    pub sound: usize,
    /// Those that are not, and why.
    pub faults: Vec<QueueError>,
    /// How many messages no binding wanted.
    pub unrouted: u64,
    /// The workers whose queue nobody takes from.
    pub deserted: Vec<WorkerName>,
}

/// What was found of a file.
#[derive(Debug)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// How many bytes of its disk are free.
    pub free_bytes: u64,
    /// How many have to be: with fewer, no more events are taken.
    pub needed_bytes: u64,
}
