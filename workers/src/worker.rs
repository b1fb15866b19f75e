//! What a worker is: a name, and what a batch of events changes. The `runner` does the rest.

use std::time::Duration;

use futures_util::future::BoxFuture;
use rollcall_shared::causes::in_one_line;
use rollcall_shared::event::{Event, WorkerName};
use rollcall_shared::queue::Replayed;
use rollcall_shared::store::{self, ErrorKind};
use sea_orm::DbErr;

use crate::cause;

/// One of the workers.
pub trait Worker: Send + Sync + 'static {
    /// Its name, which says which queue it takes from.
    const NAME: WorkerName;

    /// Makes the events of a batch take effect, all of them or none, and marks those as applied that had died
    /// ([`Batch::replays`]), in the same transaction.
    ///
    /// The same event may come again, at any time and in any order; the effect must be the same. A batch that fails is
    /// given again event by event, so that one never takes its neighbours along.
    fn handle(&self, batch: &Batch) -> impl Future<Output = Result<Handled, Failure>> + Send;

    /// The event is about to be a dead letter because of `failure`: the place to tell whoever reads the tables.
    ///
    /// # Errors
    /// As [`handle`](Self::handle); the event is tried again then.
    fn gave_up(&self, event: &Event, failure: &Failure) -> impl Future<Output = Result<(), Failure>> + Send {
        let _ = (event, failure);
        async { Ok(()) }
    }

    /// The program stops: what is under way in the background ends soon, or is left so that another can go on with it.
    fn shutdown(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Events that are made to take effect together.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    events: Vec<Event>,
    replays: Vec<Option<Replayed>>,
}

impl Batch {
    /// The events.
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// Each event, and which replay of a dead letter it is, if it is one.
    pub fn iter(&self) -> impl Iterator<Item = (&Event, Option<Replayed>)> {
        self.events.iter().zip(self.replays.iter().copied())
    }

    /// The dead letters that are among them.
    pub fn replays(&self) -> Vec<Replayed> {
        self.replays.iter().copied().flatten().collect()
    }
}

impl FromIterator<(Event, Option<Replayed>)> for Batch {
    fn from_iter<I: IntoIterator<Item = (Event, Option<Replayed>)>>(events: I) -> Self {
        let (events, replays) = events.into_iter().unzip();
        Self { events, replays }
    }
}

/// What became of a batch that did not fail, so far.
pub enum Handled {
    /// That is all.
    Ended(Outcome),
    /// It goes on by itself.
    UnderWay(Job),
}

/// What goes on whether or not somebody waits for it, and is not to be told from its deliveries any more: should it take this
/// process along, that is known elsewhere, and its deliveries are not to blame.
pub struct Job {
    /// How it ends; or, where that takes too long for a delivery, that it is to be looked after.
    pub ended: BoxFuture<'static, Result<Outcome, Failure>>,
    /// After how long to look after it, if nobody waits.
    pub look_again: Duration,
}

impl From<Outcome> for Handled {
    fn from(outcome: Outcome) -> Self {
        Self::Ended(outcome)
    }
}

/// How a batch went that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has taken effect.
    Applied,
    /// Somebody is at it: the event comes back after about this long (at once, if that is zero), and that is no failed
    /// attempt.
    LookAgain(Duration),
}

/// Why a batch failed, and so what becomes of it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Later it may work: tried again on the worker's schedule, dead when that is used up.
    #[error("{}", in_one_line(.0))]
    Transient(anyhow::Error),
    /// Waiting will not help: dead at once.
    #[error("{}", in_one_line(.0))]
    Permanent(anyhow::Error),
    /// It takes along whatever process tries it: dead at once.
    #[error("{}", in_one_line(.0))]
    Poison(anyhow::Error),
    /// The database is not there: nobody's failure. The worker stops taking events until it is back.
    #[error("{}", in_one_line(.0))]
    Unreachable(anyhow::Error),
}

impl Failure {
    /// Tried again later.
    pub fn transient(error: impl Into<anyhow::Error>) -> Self {
        Self::Transient(error.into())
    }

    /// A short stable word for what similar failures share.
    pub fn cause(&self) -> &str {
        cause::of(self.error())
    }

    /// What went wrong.
    pub(crate) fn error(&self) -> &anyhow::Error {
        match self {
            Self::Transient(error) | Self::Permanent(error) | Self::Poison(error) | Self::Unreachable(error) => error,
        }
    }

    /// Dead at once.
    pub fn permanent(error: impl Into<anyhow::Error>) -> Self {
        Self::Permanent(error.into())
    }
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        let kind = store::kind_of(&error);
        let error = anyhow::Error::new(error);
        match kind {
            ErrorKind::Unreachable => Self::Unreachable(error),
            ErrorKind::Conflict | ErrorKind::Unknown => Self::Transient(error),
            ErrorKind::Refused => Self::Permanent(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sea_orm::RuntimeErr;

    #[test]
    fn a_database_error_is_told_once() {
        let failure = Failure::from(DbErr::Query(RuntimeErr::Internal("no such table".into())));
        assert_eq!(failure.to_string(), "Query Error: no such table");
    }
}
