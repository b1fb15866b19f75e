//! The last requests that were refused, for the operator who wants to know who is at the door and why they are not let in.
//!
//! They come from [`crate::webhook`] and go to the page `/rejections` at the admin address. A stranger can push others out
//! of the list, but not make it longer; what is accepted never comes here. Who wants to know how many there were of each
//! kind looks at the counter.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{SubsecRound as _, Utc};
use rollcall_shared::telemetry::admin::Page;
use rollcall_shared::telemetry::client::ClientAddress;
use rollcall_shared::telemetry::rejections::{PATH, RejectedRequest, Rejections};

/// How many are kept.
const KEPT: usize = 100;

/// The last requests that were refused.
#[derive(Debug, Default)]
pub struct LastRejections(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    total: u64,
    /// The newest is the last.
    last: VecDeque<RejectedRequest>,
}

impl LastRejections {
    /// Keeps one more, and lets the oldest go. A body of `size` bytes came from `address`.
    pub(crate) fn keep(&self, reason: &'static str, address: ClientAddress, size: u64) {
        let rejected = RejectedRequest { at: Utc::now().trunc_subsecs(3), address, reason: reason.into(), size };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.total += 1;
        if kept.last.len() == KEPT {
            kept.last.pop_front();
        }
        kept.last.push_back(rejected);
    }

    /// Those that are kept, newest first.
    pub fn list(&self) -> Rejections {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Rejections { total: kept.total, rejections: kept.last.iter().rev().cloned().collect() }
    }

    /// The page that shows them.
    pub fn page(self: &Arc<Self>) -> Page {
        let last = Arc::clone(self);
        Page::new(PATH, move || last.list())
    }
}
