//! `rollcall status`: how everything is doing, on one screen.
//!
//! - [`snapshot`] asks the queue, the database and the ingresses, each of which may be away;
//! - [`ingress`] is what an ingress shows at its admin address;
//! - [`attention`] is what of it needs a person;
//! - [`screen`] is how it is shown.

mod attention;
mod ingress;
mod screen;
mod snapshot;

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::TimeDelta;
use console::Term;
use rollcall_shared::config::Settings;
use rollcall_shared::shutdown;
use tokio::time::sleep;

use self::snapshot::{Snapshot, Sources};
use crate::output;

/// From the first snapshot to the second: what came in between is the rate.
const BETWEEN: Duration = Duration::from_secs(1);
/// Over how long it is watched whether what waits becomes more.
const TREND: TimeDelta = TimeDelta::minutes(3);

/// Show how everything is doing: queues, workers, the ingress, recordings, and what needs a person.
///
/// Rates are per second. What is in flight, and how fast it is settled, is what the workers report every ten seconds; how fast
/// events come in is what the ingresses that were asked have accepted. With the broker's management plugin (queue.management_url),
/// the broker tells what is in flight and what comes in, by whichever way. What nobody tells is shown as –.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Show it again and again, until Ctrl-C.
    #[arg(long)]
    watch: bool,
    /// How long to wait between two looks, with --watch.
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Where an ingress shows its metrics, if that is not ingress.admin_address of the settings; may be given again for more.
    #[arg(long = "ingress", value_name = "HOST:PORT")]
    ingresses: Vec<String>,
    /// Print JSON, for programs; with --watch, one line each time.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let settings = Settings::load(config)?;
    let mut watch = Watch { sources: Sources::of(settings, args.ingresses)?, seen: VecDeque::new() };
    watch.next().await;
    sleep(BETWEEN).await;
    if !args.watch {
        let snapshot = watch.next().await;
        if args.json {
            output::print_json(snapshot)?;
        } else {
            output::print_styled(screen::render(snapshot))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let screen = Screen::open(!args.json && io::stdout().is_terminal())?;
    loop {
        let Some(snapshot) = stop.run_until_cancelled(watch.next()).await else { break };
        if args.json {
            output::print_json_line(snapshot)?;
        } else {
            screen.show(&screen::render(snapshot))?;
        }
        if stop.run_until_cancelled(sleep(args.every)).await.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One snapshot after another.
struct Watch {
    sources: Sources,
    /// The latest is the last, and the first is at least [`TREND`] older, if there was one.
    seen: VecDeque<Snapshot>,
}

impl Watch {
    /// The next one, with what needs a person.
    async fn next(&mut self) -> &Snapshot {
        let mut snapshot = self.sources.snapshot(self.seen.back()).await;
        let is_old = |seen: &Snapshot| snapshot.at - seen.at >= TREND;
        while self.seen.get(1).is_some_and(is_old) {
            self.seen.pop_front();
        }
        if let Some(before) = self.seen.back() {
            snapshot.attention = attention::of(&snapshot, before, self.seen.front().filter(|seen| is_old(seen)));
        }
        self.seen.push_back(snapshot);
        self.seen.back().expect("it was pushed")
    }
}

/// A time that the database measured.
fn seconds(seconds: f64) -> TimeDelta {
    #[expect(clippy::cast_possible_truncation, reason = "nothing runs for longer than an i64 of seconds")]
    TimeDelta::seconds(seconds as i64)
}

/// A terminal that is given back as it was.
struct Screen {
    is_terminal: bool,
}

impl Screen {
    /// To another page of the terminal, and no cursor on it.
    fn open(is_terminal: bool) -> Result<Self> {
        let screen = Self { is_terminal };
        if is_terminal {
            screen.write("\x1b[?1049h\x1b[?25l")?;
        }
        Ok(screen)
    }

    /// In the place of what was there, so that nothing flickers.
    fn show(&self, text: &str) -> Result<()> {
        if !self.is_terminal {
            return output::print_styled(format_args!("{text}\n"));
        }
        let (rows, columns) = Term::stdout().size();
        let lines = screen::cut(text, rows.into(), columns.into()).replace('\n', "\x1b[K\r\n");
        self.write(&format!("\x1b[H{lines}\x1b[K\x1b[J"))
    }

    fn write(&self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            // There is nobody to tell where it cannot be given back.
            let _ = self.write("\x1b[?25h\x1b[?1049l");
        }
    }
}
