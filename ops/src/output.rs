//! What a command tells: results on standard output, which may be a pipe that somebody closes, and the rest on standard
//! error.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Context;

/// One line, or several, on standard output.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").context("cannot write to standard output")
}

/// One line on standard error. Where that is gone too, there is nobody left to tell.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// `1 event`, `2 events`
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
