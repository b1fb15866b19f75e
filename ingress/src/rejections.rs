//! The last requests that were refused, for the operator who wants to know who is at the door and why they are not let in.
//!
//! They come from [`crate::webhook`] and go to the log and to the page `/rejections` at the admin address. What one address is
//! refused for the same reason is one of them, with a count, however often it comes: the first time it is logged at once,
//! then once a minute. So a stranger can fill neither; what is accepted never comes here. Who wants to know how many there
//! were of each kind looks at the counter.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{SubsecRound as _, Utc};
use rollcall_shared::telemetry::admin::Page;
use rollcall_shared::telemetry::client::ClientAddress;
use rollcall_shared::telemetry::rejections::{PATH, RejectedRequest, Rejections};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

/// How many are kept.
const KEPT: usize = 100;
/// How often what goes on is logged.
const LOGGED_EVERY: Duration = Duration::from_mins(1);

/// The last requests that were refused.
#[derive(Debug, Default)]
pub struct LastRejections(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    total: u64,
    /// The newest is the last.
    last: VecDeque<Repeated>,
}

#[derive(Debug, Clone)]
struct Repeated {
    network: IpAddr,
    last: RejectedRequest,
    /// How many are in no line of the log yet, and when the last line was.
    unlogged: u64,
    logged: Instant,
}

impl LastRejections {
    /// Keeps one more, and lets the oldest go. A body of `size` bytes came from `client`. Whether it is the first of its kind, to be
    /// logged: of the others this logs how many there were.
    pub(crate) fn keep(&self, reason: &'static str, client: ClientAddress, size: u64) -> bool {
        let at = Utc::now().trunc_subsecs(3);
        let one = RejectedRequest { at, since: at, count: 1, address: client, reason: reason.into(), size };
        let (is_first, pushed_out) = self.locked().keep(client.network(), one);
        if let Some(pushed_out) = pushed_out {
            pushed_out.log();
        }
        is_first
    }

    /// Logs what comes again and again, for as long as this is polled.
    pub(crate) async fn log_repeated(&self) {
        let mut ticks = interval(LOGGED_EVERY / 10);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.log(LOGGED_EVERY);
        }
    }

    /// Logs what is in no line yet, of what had none for so long.
    pub(crate) fn log(&self, silent_for: Duration) {
        let due = self.locked().take_due(silent_for);
        due.iter().for_each(Repeated::log);
    }

    /// Those that are kept, newest first.
    pub fn list(&self) -> Rejections {
        let kept = self.locked();
        Rejections { total: kept.total, rejections: kept.last.iter().rev().map(|it| it.last.clone()).collect() }
    }

    /// The page that shows them.
    pub fn page(self: &Arc<Self>) -> Page {
        let last = Arc::clone(self);
        Page::new(PATH, move || last.list())
    }

    fn locked(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Whether it is the first of its kind, and what went for it.
    fn keep(&mut self, network: IpAddr, one: RejectedRequest) -> (bool, Option<Repeated>) {
        self.total += 1;
        let known = self.last.iter().rposition(|it| it.network == network && it.last.reason == one.reason);
        if let Some(mut repeated) = known.and_then(|index| self.last.remove(index)) {
            let RejectedRequest { since, count, .. } = repeated.last;
            repeated.last = RejectedRequest { since, count: count + 1, ..one };
            repeated.unlogged += 1;
            self.last.push_back(repeated);
            return (false, None);
        }
        let pushed_out = if self.last.len() == KEPT { self.last.pop_front() } else { None };
        self.last.push_back(Repeated { network, last: one, unlogged: 0, logged: Instant::now() });
        (true, pushed_out)
    }

    fn take_due(&mut self, silent_for: Duration) -> Vec<Repeated> {
        let due = self.last.iter_mut().filter(|it| it.unlogged > 0 && it.logged.elapsed() >= silent_for);
        due.map(|repeated| {
            let now = repeated.clone();
            (repeated.unlogged, repeated.logged) = (0, Instant::now());
            now
        })
        .collect()
    }
}

impl Repeated {
    fn log(&self) {
        let RejectedRequest { address, reason, .. } = &self.last;
        if self.unlogged > 0 {
            warn!(client = %address, %reason, count = self.unlogged, "More such requests were refused.");
        }
    }
}
