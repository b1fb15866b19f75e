//! What the demo shows while it runs: a line that moves on a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// How many plain lines tell how far the webhooks are.
const PLAIN_LINES: u64 = 4;

/// Shows one step after the other, on standard error.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    is_plain: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        let is_plain = bar.is_hidden();
        if !is_plain {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self { bar, is_plain }
    }

    /// A step begins; the one before is done.
    pub(super) fn step(&self, text: &str) {
        if self.is_plain {
            return output::complain(text);
        }
        self.done();
        self.bar.set_style(ProgressStyle::default_spinner());
        self.bar.set_message(text.to_owned());
    }

    /// A step of `posts` webhooks begins.
    pub(super) fn step_of_posts(&self, text: &str, posts: usize) {
        self.step(text);
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}/{len} {prefix}");
        if let (false, Ok(style)) = (self.is_plain, style) {
            self.bar.set_style(style);
        }
        self.bar.set_length(posts as u64);
        self.bar.set_position(0);
    }

    /// One more webhook is through, when the class is this old.
    pub(super) fn posted(&self, age: Duration) {
        self.bar.set_prefix(format!("minute {:2}", age.as_secs() / 60));
        self.bar.inc(1);
        let (position, length) = (self.bar.position(), self.bar.length().unwrap_or_default());
        let line = |position: u64| position * PLAIN_LINES / length.max(1);
        if self.is_plain && line(position) > line(position - 1) {
            output::complain(format_args!("  {position} of {length}"));
        }
    }

    /// Every step is done, or the last one never will be.
    pub(super) fn finish(&self, is_done: bool) {
        if !self.is_plain && is_done {
            self.done();
        }
        self.bar.finish_and_clear();
    }

    fn done(&self) {
        let message = self.bar.message();
        if !message.is_empty() {
            self.bar.println(format!("✓ {message}"));
        }
    }
}
