//! What a worker has taken out of the queue and not settled: how much, since when, and how much it has settled. For whoever wants
//! to know how it is doing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

/// What a worker has in hand. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct InHand(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    /// How many messages were taken in at each time.
    by_time: BTreeMap<DateTime<Utc>, usize>,
    unsettled: usize,
    settled: u64,
}

impl InHand {
    /// One more message, taken in then, until what this returns is dropped.
    pub fn take(&self, received_at: DateTime<Utc>) -> Held {
        let mut counts = self.locked();
        *counts.by_time.entry(received_at).or_default() += 1;
        counts.unsettled += 1;
        Held { in_hand: self.clone(), received_at, is_settled: false }
    }

    /// How many messages are in hand.
    pub fn unsettled(&self) -> usize {
        self.locked().unsettled
    }

    /// How many were.
    pub fn settled(&self) -> u64 {
        self.locked().settled
    }

    /// When the oldest that is in hand was taken in.
    pub fn oldest(&self) -> Option<DateTime<Utc>> {
        self.locked().by_time.keys().next().copied()
    }

    fn locked(&self) -> MutexGuard<'_, Counts> {
        // Counts that somebody panicked beside are still counts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One message in hand.
#[derive(Debug)]
pub struct Held {
    in_hand: InHand,
    received_at: DateTime<Utc>,
    is_settled: bool,
}

impl Held {
    /// It is settled, and not merely let go of, as what was lost with its connection.
    pub fn settle(&mut self) {
        self.is_settled = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut counts = self.in_hand.locked();
        if let Some(count) = counts.by_time.get_mut(&self.received_at) {
            *count -= 1;
            if *count == 0 {
                counts.by_time.remove(&self.received_at);
            }
        }
        counts.unsettled -= 1;
        counts.settled += u64::from(self.is_settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_oldest_that_is_left() {
        let in_hand = InHand::default();
        let at = |second| DateTime::from_timestamp(second, 0).unwrap();
        let (late, early, twin) = (in_hand.take(at(2)), in_hand.take(at(1)), in_hand.take(at(1)));
        assert_eq!((in_hand.unsettled(), in_hand.oldest()), (3, Some(at(1))));
        let [mut early, mut late] = [early, late];
        early.settle();
        late.settle();
        drop(early);
        assert_eq!(in_hand.oldest(), Some(at(1)));
        drop(twin);
        assert_eq!((in_hand.unsettled(), in_hand.settled(), in_hand.oldest()), (1, 1, Some(at(2))));
        drop(late);
        assert_eq!((in_hand.unsettled(), in_hand.settled(), in_hand.oldest()), (0, 2, None));
    }
}
