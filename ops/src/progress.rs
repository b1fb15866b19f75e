//! How far something is: a bar on a terminal, now and then a line elsewhere; on standard error.

use std::cell::Cell;
use std::fmt;
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use crate::output;

/// How many plain lines there are until the end.
const PLAIN_LINES: u64 = 10;

/// Fewer than this are done before anybody can read about it.
const LEAST: u64 = 1_000;

/// Shows how much of a known number is done, until it is dropped.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: &'static str,
    told: Cell<u64>,
}

impl Progress {
    /// `what` is being done to so many.
    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::new(total);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} ({per_sec}{left})");
        if let Ok(style) = style {
            bar.set_style(style.with_key("left", left));
        }
        bar.set_message(what);
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, what, told: Cell::new(0) }
    }

    /// So many more are done.
    pub(crate) fn add(&self, count: u64) {
        self.set(self.bar.position() + count);
    }

    /// So many are done.
    pub(crate) fn set(&self, position: u64) {
        self.bar.set_position(position);
        let length = self.bar.length().unwrap_or_default();
        let line = position * PLAIN_LINES / length.max(1);
        if self.bar.is_hidden() && length >= LEAST && line > self.told.replace(line) {
            output::complain(format_args!("{}: {} of {}", self.what, HumanCount(position), HumanCount(length)));
        }
    }

    /// Says something, beside the bar.
    pub(crate) fn say(&self, text: &str) {
        self.bar.suspend(|| output::complain(text));
    }
}

/// How long it will take yet; nothing, while nothing has been done by which to tell.
fn left(state: &ProgressState, to: &mut dyn fmt::Write) {
    if state.per_sec() > 0.0 {
        // The bar has no place to say that it cannot be written.
        let _ = write!(to, ", {:#} left", HumanDuration(state.eta()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
