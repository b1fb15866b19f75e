//! The table, on standard output.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::ensure;

use super::requests::Webhooks;
use super::{Measured, Plan};

/// What the ingress is to reach on a machine of two cores, with RabbitMQ and the load on it.
const TARGET: f64 = 10_000.0;

/// One line of the table.
#[derive(Debug)]
pub struct Row {
    /// What ran.
    pub name: &'static str,
    /// What it came to.
    pub measured: Measured,
    /// The processor time that it took in the measured time, in microseconds.
    pub cpu_micros: u64,
    /// How many messages the queues held in the end, where it publishes.
    pub stored: Option<u64>,
}

/// The table as it grows; the last line is the ingress.
#[derive(Debug)]
pub struct Report {
    head: String,
    rows: Vec<Row>,
}

impl Report {
    /// An empty table for runs of this kind.
    pub fn new(plan: Plan, webhooks: &Webhooks) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let head = format!(
            "{} captured webhooks of {} bytes on average, signed by tokens, over {} kept-alive connections (for the\n\
             publisher: that many in flight), {} s each after {} s of warm-up. One machine of {cores} cores for everything: the\n\
             load, RabbitMQ, and what is measured. Nobody takes from the queues meanwhile; they are counted, then emptied.",
            webhooks.bodies().len(),
            webhooks.average_bytes(),
            plan.connections,
            plan.measured.as_secs(),
            plan.warm_up.as_secs(),
        );
        Self { head, rows: Vec::new() }
    }

    /// Adds a line.
    pub fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Prints it.
    ///
    /// # Errors
    /// An answer was not 200, or the queues do not hold what was accepted.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut text = format!(
            "{}\n\n{:<26} {:>9} {:>8} {:>8} {:>8} {:>10}  {}\n",
            self.head, "", "events/s", "p50 ms", "p99 ms", "max ms", "CPU µs/ev.", "in the queues"
        );
        for row in &self.rows {
            let Row { name, measured, cpu_micros, stored } = row;
            let cpu = *cpu_micros as f64 / measured.micros.len() as f64;
            let stored = stored.map(|stored| format!("{stored} of {}", measured.accepted)).unwrap_or_default();
            writeln!(
                text,
                "{name:<26} {:>9.0} {:>8.1} {:>8.1} {:>8.1} {cpu:>10.1}  {stored}",
                measured.rate(),
                measured.quantile(0.5),
                measured.quantile(0.99),
                measured.quantile(1.0),
            )?;
        }
        if let [a, b, c] = &self.rows[..] {
            let rates = [a, b, c].map(|row| row.measured.rate());
            let verdict = if rates[2] >= TARGET { "reached" } else { "missed" };
            writeln!(text, "\n(c) is {:.2} of (a) and {:.2} of (b).", rates[2] / rates[0], rates[2] / rates[1])?;
            writeln!(text, "The target of {TARGET:.0} accepted and confirmed a second is {verdict}.\n")?;
        }
        std::io::stdout().write_all(text.as_bytes())?;
        for row in &self.rows {
            ensure!(row.measured.refused == 0, "{}: {} answers were not 200", row.name, row.measured.refused);
            let is_all_there = row.stored.is_none_or(|stored| stored >= row.measured.accepted);
            ensure!(is_all_there, "{}: the queues do not hold what was accepted", row.name);
        }
        Ok(())
    }
}
