//! How far a long command is: a bar on a terminal, plain lines elsewhere, on standard error.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// How many plain lines tell how far it is.
const PLAIN_LINES: u64 = 4;

/// Shows how much of a known amount of work is done.
pub(crate) struct Progress {
    bar: ProgressBar,
    is_plain: bool,
    /// What there are so many of: "sessions".
    what: &'static str,
}

impl Progress {
    /// Begins to show how many `of` things are done: first none.
    pub(crate) fn new(of: u64, what: &'static str) -> Self {
        let bar = ProgressBar::new(of);
        let is_plain = bar.is_hidden();
        let style = ProgressStyle::with_template("{spinner} {wide_bar} {pos}/{len} {prefix}, {eta} to go {msg}");
        if let (false, Ok(style)) = (is_plain, style) {
            bar.set_style(style);
            bar.set_prefix(what);
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self { bar, is_plain, what }
    }

    /// So many are done, and `note` is what else there is to say of them.
    pub(crate) fn is_at(&self, position: u64, note: &str) {
        let before = self.bar.position();
        self.bar.set_position(position);
        self.bar.set_message(note.to_owned());
        let of = self.bar.length().unwrap_or_default();
        let line = |position: u64| position * PLAIN_LINES / of.max(1);
        if self.is_plain && line(position) > line(before) {
            output::complain(format_args!("  {position} of {of} {} {note}", self.what));
        }
    }

    /// Shows nothing any more: the result is told elsewhere.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
