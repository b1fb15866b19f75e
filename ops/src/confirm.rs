//! Asking before something that cannot easily be undone.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Result, bail};
use rollcall_shared::display;

/// Asks on the terminal whether to go on. `what` says in whole sentences what will happen.
///
/// # Errors
/// The answer is no; or there is no terminal, and the error says to pass --yes, which is the caller's to know.
pub(crate) fn or_stop(what: &str) -> Result<()> {
    if !io::stdin().is_terminal() {
        bail!("{what} There is no terminal to ask on: pass --yes to go on");
    }
    // Not locked: whoever is interrupted here has a last word on standard error.
    ask(what, &mut io::stdin().lock(), &mut io::stderr())
}

fn ask(what: &str, answers: &mut impl BufRead, terminal: &mut impl Write) -> Result<()> {
    write!(terminal, "{}\nGo on? [y/N] ", display::on_page(what))?;
    terminal.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        bail!("nothing was changed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_goes_on() {
        for (answer, goes_on) in
            [("y\n", true), ("Yes\n", true), ("n\n", false), ("\n", false), ("", false), ("yesterday\n", false)]
        {
            let mut terminal = Vec::new();
            let asked = ask("All rows will be lost.", &mut answer.as_bytes(), &mut terminal);
            assert_eq!(asked.is_ok(), goes_on, "{answer:?}");
            assert_eq!(terminal, b"All rows will be lost.\nGo on? [y/N] ");
        }
    }
}
