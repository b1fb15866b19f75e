//! How many webhooks a second the ingress takes in, confirmed, beside the two things that it is made of on the same machine
//! in the same run: a publisher that only publishes, and an HTTP server that only verifies.
//!
//! - [`requests`]: what is posted, signed and ready for the wire;
//! - [`load`]: posts it over many connections and takes the time of each answer;
//! - [`publisher`]: the same bodies, published and confirmed by lapin and nothing else;
//! - [`server`]: hyper and the signature check, and nothing else, as a process of its own;
//! - [`queues`]: what is in the queues in the end, against what was said to be;
//! - [`report`]: the table.
//!
//! Besides, with sections of their own: [`outage`], how webhooks are answered while the broker is away; [`embedded`], what
//! the embedded queue takes, and what comes through on the files of one machine.

pub mod embedded;
pub mod load;
pub mod outage;
pub mod publisher;
pub mod queues;
pub mod report;
pub mod requests;
pub mod server;

use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::installation::Installation;
use queues::Queues;
use report::{Report, Row};
use requests::Webhooks;

/// What every run is given.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Connections that each post one webhook after the other; for the publisher, messages in flight.
    pub connections: usize,
    /// Not counted: connections are made, buffers and queues grow to their size.
    pub warm_up: Duration,
    /// What is counted.
    pub measured: Duration,
}

/// What a run came to.
#[derive(Debug)]
pub struct Measured {
    /// Answered well, or confirmed, from the first to the last.
    pub accepted: u64,
    /// Anything else.
    pub refused: u64,
    /// How long each took, in microseconds: of those that ended in the measured time, sorted.
    pub micros: Vec<u32>,
    /// The measured time.
    pub elapsed: Duration,
}

impl Measured {
    /// What was accepted in the measured time, by the second.
    pub fn rate(&self) -> f64 {
        self.micros.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The time within which such a share of the events was done, in milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.micros.len().saturating_sub(1);
        let micros = self.micros.get((last as f64 * share).round() as usize);
        f64::from(micros.copied().unwrap_or_default()) / 1_000.0
    }
}

/// When a run's measured time begins and ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    begin: Instant,
    end: Instant,
}

impl Window {
    pub(crate) fn from_now(plan: Plan) -> Self {
        let begin = Instant::now() + plan.warm_up;
        Self { begin, end: begin + plan.measured }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Notes how long something took that ends now, if that is to be counted.
    pub(crate) fn note(&self, begun: Instant, micros: &mut Vec<u32>) {
        let now = Instant::now();
        if (self.begin..self.end).contains(&now) {
            micros.push((now - begun).as_micros().try_into().unwrap_or(u32::MAX));
        }
    }
}

/// The processor time, in microseconds, that a process takes in the measured time of a run beginning now.
pub(crate) async fn processor_time(pid: u32, plan: Plan) -> anyhow::Result<u64> {
    tokio::time::sleep(plan.warm_up).await;
    let before = processor_micros(pid)?;
    tokio::time::sleep(plan.measured).await;
    Ok(processor_micros(pid)? - before)
}

/// What a process has used of the processors so far, in microseconds.
pub(crate) fn processor_micros(pid: u32) -> anyhow::Result<u64> {
    /// What Linux counts in, on every architecture.
    const TICK: u64 = 10_000;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    // Behind the name, which may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/<pid>/stat has no name")?;
    let fields = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    Ok(fields.collect::<Result<Vec<_>, _>>()?.iter().sum::<u64>() * TICK)
}

/// Runs everything and prints the table.
///
/// # Errors
/// Something does not run, an answer was not 200, or the queues do not hold what was accepted.
pub async fn run(plan: Plan) -> anyhow::Result<()> {
    let installation = Installation::new().await;
    let keys = installation.keys("main").clone();
    let webhooks = Webhooks::captured();
    let queues = Queues::declare(&installation).await?;
    let mut report = Report::new(plan, &webhooks);

    let (measured, micros) =
        tokio::try_join!(publisher::run(&installation, &webhooks, plan), processor_time(std::process::id(), plan))?;
    let stored = queues.count_and_purge(measured.accepted).await?;
    report.row(Row { name: "(a) bare lapin publisher", measured, cpu_micros: micros, stored: Some(stored) });

    let bare = server::Process::start(&keys).await?;
    let load = load::run(bare.address, webhooks.signed(&keys), plan);
    let (measured, micros) = tokio::try_join!(load, processor_time(bare.id(), plan))?;
    drop(bare);
    report.row(Row { name: "(b) bare hyper + HMAC", measured, cpu_micros: micros, stored: None });

    let ingress = installation.ingress().await;
    let load = load::run(ingress.address, webhooks.signed(&keys), plan);
    let (measured, micros) = tokio::try_join!(load, processor_time(ingress.process.id(), plan))?;
    let stored = queues.count_and_purge(measured.accepted).await?;
    report.row(Row { name: "(c) rollcall-ingress", measured, cpu_micros: micros, stored: Some(stored) });
    ingress.process.stop().await;

    report.print()
}
