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
