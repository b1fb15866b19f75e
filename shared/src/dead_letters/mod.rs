//! Dead letters in the database: what died, why, and what became of it.
//!
//! The worker `dead-letters` takes them out of the queue and [`record`]s them; an operator looks at them and sends some back to
//! their workers; the worker that applies one after all says so ([`applied`]) in the transaction of its effect.
//!
//! - [`filter`]: which of them; [`walk`]: all of these, some at a time;
//! - [`find`]: what there is to see of them;
//! - [`change`]: dropping, restoring, editing, notes;
//! - [`replay`]: back to their workers, and what became of that;
//! - [`transfer`]: out as lines of JSON, and in again;
//! - `record`: what workers write;
//! - `limits`: what any of them may hold, wherever it comes from.
//!
//! A row's `replays` makes every race harmless: it is the number of the latest replay, a message says which it is, and whoever
//! learns of a later one (the operator's tool, the worker that applies it, the worker that finds it dead again) raises it. What
//! is said of an earlier one changes no state any more.

pub mod change;
pub mod filter;
pub mod find;
mod limits;
mod record;
pub mod replay;
mod subject;
pub mod transfer;
mod walk;

pub use self::change::By;
pub use self::filter::Filter;
pub use self::limits::BadValue;
pub use self::record::{Purge, applied, prune, purged, record};
pub use self::subject::Subject;

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It waits for somebody to look at it.
    Dead,
    /// It was sent back to its worker, which has not told yet.
    Replaying,
    /// Its worker has applied it after all.
    Applied,
    /// Somebody has said that it shall not be applied.
    Dropped,
}

impl State {
    /// As it stands in the database and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Replaying => "replaying",
            Self::Applied => "applied",
            Self::Dropped => "dropped",
        }
    }
}
