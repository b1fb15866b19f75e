//! `rollcall status`: how everything is doing, on one screen.
//!
//! - [`look`] asks the queue, the database and the ingresses, each of which may be away;
//! - [`ingress`] is what an ingress shows at its admin address;
//! - [`attention`] is what of it needs a person;
//! - [`screen`] is how it is shown.

mod attention;
mod ingress;
mod look;
mod screen;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use chrono::{DateTime, TimeDelta, Utc};
use rollcall_shared::config::Settings;
use rollcall_shared::shutdown;
use rollcall_shared::store::entity::worker_process::Model as Process;
use tokio::time::sleep;

use self::look::{Look, Sources};
use crate::output;

/// What a worker that rests calls its state.
pub(crate) const PAUSED: &str = "paused";
/// How long a worker may say nothing before it is taken for dead: it tells every ten seconds.
const SILENCE: TimeDelta = TimeDelta::seconds(30);
/// From one look to the next: what came in between is the rate.
const BETWEEN: Duration = Duration::from_secs(1);

/// Show how everything is doing: queues, workers, the ingress, recordings, and what needs a person.
///
/// Rates are per second. What nobody tells is shown as –: a broker tells how much workers have in hand, and how fast events come
/// in, only with its management plugin (queue.management_url).
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
    let mut sources = Sources::of(settings, args.ingresses)?;
    let before = sources.look(None).await;
    sleep(BETWEEN).await;
    let mut look = look_after(&mut sources, &before).await;
    if !args.watch {
        if args.json {
            output::print(serde_json::to_string_pretty(&look)?)?;
        } else {
            output::print(screen::render(&look))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let screen = Screen::open(!args.json && io::stdout().is_terminal())?;
    loop {
        if args.json {
            output::print(serde_json::to_string(&look)?)?;
        } else {
            screen.show(&screen::render(&look))?;
        }
        if stop.run_until_cancelled(sleep(args.every)).await.is_none() {
            return Ok(ExitCode::SUCCESS);
        }
        look = look_after(&mut sources, &look).await;
    }
}

/// A look that comes after another one, with what needs a person.
async fn look_after(sources: &mut Sources, before: &Look) -> Look {
    let mut look = sources.look(Some(before)).await;
    look.attention = attention::of(&look, before);
    look
}

/// Whether a process has told of late that it runs.
pub(crate) fn is_alive(process: &Process, now: DateTime<Utc>) -> bool {
    now - process.seen_at < SILENCE
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
            return output::print(format_args!("{text}\n"));
        }
        let lines = text.replace('\n', "\x1b[K\r\n");
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
