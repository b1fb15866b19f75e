//! Dead letters in the database: what died, why, and what became of it.
//!
//! The worker `dead-letters` takes them out of the queue and [`record`]s them; an operator looks at them and sends some back to
//! their workers; the worker that applies one after all says so ([`applied`]) in the transaction of its effect.
//!
//! A row's `replays` makes every race harmless: it is the number of the latest replay, a message says which it is, and whoever
//! learns of a later one (the operator's tool, the worker that applies it, the worker that finds it dead again) raises it. What
//! is said of an earlier one changes no state any more.

mod record;

pub use self::record::{applied, prune, purged, record};

/// What became of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It waits for somebody to look at it.
    Dead,
    /// It was sent back to its worker.
    Replaying,
    /// Its worker has applied it after all.
    Applied,
    /// Somebody has said that it shall not be applied.
    Dropped,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Dead, Self::Replaying, Self::Applied, Self::Dropped];

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
