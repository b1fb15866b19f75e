//! What a command tells: results on standard output, which may be a pipe that somebody closes, and the rest on standard
//! error.

use std::fmt::Display;
use std::io::{self, Write};

use rollcall_shared::display;
use serde::Serialize;

/// Standard output is a pipe that nobody reads any more: no fault, and nobody is to be told.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed any more")]
pub(crate) struct Closed;

/// One line, or several, on standard output: with nothing that a terminal would take for an order, since others' words may be in
/// it.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    print_styled(display::on_page(&text.to_string()))
}

/// What has orders for the terminal in it, and none of them of others' making.
pub(crate) fn print_styled(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(cannot_write)
}

/// JSON for programs, over many lines.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_styled(display::json(&serde_json::to_string_pretty(value)?))
}

/// JSON for programs, in one line.
pub(crate) fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_styled(json_line(value)?)
}

/// JSON in one line.
pub(crate) fn json_line(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(display::json(&serde_json::to_string(value)?))
}

/// The error of a write to standard output.
pub(crate) fn cannot_write(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Closed.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    }
}

/// One line on standard error. Where that is gone too, there is nobody left to tell.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{}", display::on_page(&text.to_string()));
}

/// `1 event`, `2 events`
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_no_fault() {
        assert!(cannot_write(io::ErrorKind::BrokenPipe.into()).is::<Closed>());
        assert!(!cannot_write(io::ErrorKind::StorageFull.into()).is::<Closed>());
    }
}
