//! An error with its causes, for a line of a log or of a table.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Error;

use crate::display;

/// The error and what caused it, each thing said once: sea-orm's and sqlx's errors repeat their cause, and name it as such.
pub fn in_one_line(error: &Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |said, cause| if said.ends_with(&cause) { said } else { format!("{said}: {cause}") })
}

/// How a program ends: what went wrong is told on standard error. Others' words may be in it: those of a broker, say.
pub fn exit_code(outcome: Result<(), Error>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    // Where that is gone too, there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "Error: {}", display::on_page(&in_one_line(&error)));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[derive(Debug, thiserror::Error)]
    #[error("query error: {0}")]
    struct Repeating(#[source] std::io::Error);

    #[test]
    fn what_is_said_already_is_not_said_again() {
        let cause = || std::io::Error::other("the relation is not there");
        let error = Error::new(Repeating(cause())).context("opening the session");
        assert_eq!(in_one_line(&error), "opening the session: query error: the relation is not there");
        let error = Error::new(cause()).context("opening the session");
        assert_eq!(in_one_line(&error), "opening the session: the relation is not there");
        assert_eq!(in_one_line(&anyhow!("alone")), "alone");
    }
}
