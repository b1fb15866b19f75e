//! Logs, metrics, and the address that shows them.
//!
//! - [`init`] sends log events to standard error, as text on a terminal and as JSON elsewhere;
//! - [`admin`] shows `/healthz`, `/readyz` and `/metrics`;
//! - [`rejections`] is what an ingress shows there beside them;
//! - [`obstacles`] is what a program is not ready for;
//! - [`client`] is where a request comes from, for the log and for that page;
//! - [`trace_context`] ties what the ingress did for an event to what a worker does for it.

pub mod admin;
pub mod client;
pub mod obstacles;
pub mod rejections;
pub mod trace_context;

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{fmt, registry};

use crate::config::{ConfigError, Log, LogFormat};
use crate::display::Spelt;

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// `log.filter` is not in the filter language.
    #[error(transparent)]
    Filter(#[from] ConfigError),
    /// Something else in this process has the logs already.
    #[error("logging is set up already")]
    Twice(#[from] TryInitError),
}

/// Sends the log events of this process that `log.filter` lets through to standard error.
///
/// # Errors
/// The filter cannot be read, or this was called before.
pub fn init(log: &Log) -> Result<(), InitError> {
    let is_terminal = io::stderr().is_terminal();
    let is_text = log.format == LogFormat::Text || (log.format == LogFormat::Auto && is_terminal);
    let wanted = registry().with(filter(&log.filter)?);
    let lines = fmt::layer()
        .with_ansi(is_terminal)
        // Told on standard error, which is just what cannot be written to: that would be a panic in whoever logs.
        .log_internal_errors(false)
        // What others wrote is in them. Text on a terminal is in colours, and takes others' orders for those out by itself.
        .with_writer(move || Spelt::new(io::stderr(), is_terminal && is_text));
    if is_text {
        wanted.with(lines).try_init()?;
    } else {
        wanted.with(lines.json().flatten_event(true)).try_init()?;
    }
    Ok(())
}

/// Where lapin calls an error what it also returns, raw and on several lines, and logs a message that comes back with its body. Its
/// callers say it once, with what to do.
const QUIET: [&str; 3] = ["lapin::channel", "lapin::io_loop", "lapin::returned_messages"];

fn filter(text: &str) -> Result<Targets, ConfigError> {
    let targets: Targets = text.parse().map_err(|_| ConfigError::Invalid {
        name: "log.filter".into(),
        value: text.into(),
        allowed: "it is a level, and levels of parts after commas: \"info\", \"info,rollcall_workers=debug\"",
    })?;
    let quiet = QUIET.iter().filter(|_| !text.contains("lapin")).map(|target| (*target, LevelFilter::OFF));
    Ok(targets.with_targets(quiet))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lapin_says_is_said_by_us_unless_it_is_asked_for() {
        let shown = |text: &str| {
            let wanted = registry().with(filter(text).unwrap());
            tracing::subscriber::with_default(wanted, || {
                [
                    tracing::enabled!(target: "lapin::channels", tracing::Level::ERROR),
                    tracing::enabled!(target: "lapin::heartbeat", tracing::Level::ERROR),
                    tracing::enabled!(target: "rollcall_shared::queue", tracing::Level::INFO),
                ]
            })
        };
        assert_eq!(shown("info"), [false, true, true]);
        assert_eq!(shown("info,lapin=debug"), [true, true, true]);
        assert_eq!(shown("off"), [false, false, false]);
    }

    #[test]
    fn a_bad_filter_is_named() {
        assert!(filter("info,rollcall_workers=debug").is_ok());
        let message = filter("info,rollcall_workers=loud").unwrap_err().to_string();
        assert!(message.starts_with("setting log.filter is \"info,rollcall_workers=loud\": it is"), "{message}");
    }
}
