//! Messages that somebody else than their worker takes out of the queue: the dead, which are kept in the database, and what an
//! operator purges. A batch at a time, and gone from the queue only once whoever took it says that it is safe elsewhere.

use std::fmt;

use futures_util::future::BoxFuture;

use super::QueueError;
use super::message::Removed;
use crate::config::RetrySchedule;
use crate::event::WorkerName;

/// Which messages are taken out.
#[derive(Debug, Clone)]
pub enum Drained {
    /// What is dead, of every worker.
    Dead,
    /// What waits for a worker when this begins: in its own queue, for its next try on this schedule, and among the suspects.
    Waiting(WorkerName, RetrySchedule),
}

/// How many bytes of bodies there are in one batch, unless one message has more: as with the number of messages, what is held in
/// memory.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// Takes messages out. What it has given and nobody has confirmed is back in the queue when this is gone; on a broker, as what has
/// come back once, so that its worker takes it alone.
pub struct Drain(Box<dyn TakeOut>);

/// What a back end does.
pub(super) trait TakeOut: Send {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Removed>, QueueError>>;

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), QueueError>>;
}

impl Drain {
    pub(super) fn new(back_end: impl TakeOut + 'static) -> Self {
        Self(Box::new(back_end))
    }

    /// The next messages, `most` of them and 4 MiB at most, besides those that were not confirmed yet; none where no more are
    /// there now.
    ///
    /// # Errors
    /// The queue cannot be reached, or was lost: what was not confirmed will be given again, by another drain.
    pub async fn next(&mut self, most: usize) -> Result<Vec<Removed>, QueueError> {
        self.0.next(most).await
    }

    /// Everything that was given is safe elsewhere: it is taken out of the queue.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub async fn confirm(&mut self) -> Result<(), QueueError> {
        self.0.confirm().await
    }
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").finish_non_exhaustive()
    }
}
