//! Dead letters in the database: what died, why, and what operators make of it.
//!
//! - [`filter`]: which of them; [`walk`]: all of these, some at a time;
//! - [`find`]: what there is to see of them;
//! - [`change`]: dropping, restoring, editing, notes;
//! - [`replay`]: back to their workers, and what became of that;
//! - [`transfer`]: out as lines of JSON, and in again.

pub mod change;
pub mod filter;
pub mod find;
pub mod replay;
mod subject;
pub mod transfer;
mod walk;

pub use self::change::By;
pub use self::filter::Filter;
pub use self::subject::Subject;

/// What has become of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// It waits for somebody.
    Dead,
    /// It was sent back to its worker, which has not told yet.
    Replaying,
    /// It has taken effect.
    Applied,
    /// Somebody said that it shall not.
    Dropped,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Dead, Self::Replaying, Self::Applied, Self::Dropped];

    /// The word for it, as it stands in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Replaying => "replaying",
            Self::Applied => "applied",
            Self::Dropped => "dropped",
        }
    }

    /// The state of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}
