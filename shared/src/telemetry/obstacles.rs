//! What keeps a program from its work just now, for `/readyz`: whoever notices says so, and takes it back.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The obstacles of one program. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Obstacles(Arc<Mutex<BTreeSet<&'static str>>>);

impl Obstacles {
    /// This keeps the program from its work, until it is [`removed`](Self::remove). Whether that is new: to tell it once.
    pub fn add(&self, what: &'static str) -> bool {
        self.locked().insert(what)
    }

    /// This does not any more.
    pub fn remove(&self, what: &'static str) {
        self.locked().remove(what);
    }

    /// Whether anything else than this stands in the way.
    pub fn is_any_but(&self, what: &'static str) -> bool {
        self.locked().iter().any(|obstacle| *obstacle != what)
    }

    /// Whether nothing stands in the way; else all that does.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn check(&self) -> Result<(), String> {
        let obstacles = self.locked();
        if obstacles.is_empty() { Ok(()) } else { Err(obstacles.iter().copied().collect::<Vec<_>>().join("; ")) }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        // A set that somebody panicked beside is still a set.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
