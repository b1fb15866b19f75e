//! What a command tells: results on standard output, which may be a pipe that somebody closes, and the rest on standard
//! error.

use std::fmt::Display;
use std::io::{self, Write};

/// Standard output is a pipe that nobody reads any more: no fault, and nobody is to be told.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is printed any more")]
pub(crate) struct Closed;

/// One line, or several, on standard output.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{text}").map_err(cannot_write)
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
    let _ = writeln!(io::stderr().lock(), "{}", harmless(&text.to_string()));
}

/// A page in which there is nothing that a terminal would take for an order: it may hold what others have written.
pub(crate) fn harmless(page: &str) -> String {
    page.chars().map(|character| if character.is_control() && character != '\n' { ' ' } else { character }).collect()
}

/// `1 event`, `2 events`
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_keeps_its_lines_and_gives_no_orders() {
        assert_eq!(harmless("a\n\u{1b}[2Jb\tc\r\u{9b}31m – ü\n"), "a\n [2Jb c  31m – ü\n");
    }

    #[test]
    fn only_a_closed_pipe_is_no_fault() {
        assert!(cannot_write(io::ErrorKind::BrokenPipe.into()).is::<Closed>());
        assert!(!cannot_write(io::ErrorKind::StorageFull.into()).is::<Closed>());
    }
}
