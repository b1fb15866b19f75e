//! The outage: a steady load while RabbitMQ is stopped, and killed. Whoever posts is not to notice.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::eventually;
use crate::installation::{Ingress, Installation};
use crate::load::all_applied;
use crate::services::{self, Server};
use crate::steady::{Answer, Answers, Steady, quantile};

/// Events a second.
const RATE: u32 = 500;
/// How long the broker is away, each time.
const OUTAGE: Duration = Duration::from_secs(60);
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// What 99 of 100 answers are to take at most during an outage.
const TARGET: Duration = Duration::from_millis(50);

/// How the broker goes.
#[derive(Debug, Clone, Copy)]
enum End {
    Stopped,
    Killed,
}

/// When the broker went, was started again, and had everything.
#[derive(Debug, Clone, Copy)]
struct Times {
    gone: Instant,
    started: Instant,
    handed_over: Instant,
}

/// Runs both outages and prints how webhooks were answered meanwhile.
///
/// # Errors
/// An answer was not 200.
pub async fn run() -> anyhow::Result<()> {
    let rabbitmq = Server::rabbitmq("bench-outage").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    let ingress = installation.ingress().await;
    let _worker = installation.worker("attendance").await;
    let load = Steady::start(installation.keys("main"), &[ingress.address], RATE);
    // RabbitMQ 3.10 forgets a quorum queue that it is killed within a second of declaring.
    load.goes_on(5 * RATE as usize, PATIENCE).await;
    let mut outages = Vec::new();
    for end in [End::Stopped, End::Killed] {
        outages.push((end, outage(&rabbitmq, &ingress, end).await));
    }
    let answers = load.stop().await;
    all_applied(&installation, &answers.accepted, PATIENCE).await;
    report(&answers, &outages)
}

async fn outage(rabbitmq: &Server, ingress: &Ingress, end: End) -> Times {
    let gone = Instant::now();
    match end {
        End::Stopped => rabbitmq.stop().await,
        End::Killed => rabbitmq.kill().await,
    }
    tokio::time::sleep_until((gone + OUTAGE).into()).await;
    let started = Instant::now();
    rabbitmq.start().await;
    eventually(PATIENCE, || async {
        let (_, says) = ingress.readiness().await;
        if says == "ready\n" { Ok(()) } else { Err(says) }
    })
    .await;
    Times { gone, started, handed_over: Instant::now() }
}

fn report(answers: &Answers, outages: &[(End, Times)]) -> anyhow::Result<()> {
    let mut text = format!(
        "{RATE} events a second from as many rooms, a broker that is away for {} s, and a worker on what comes through.\n\
         All {} that were accepted are in the tables, once.\n\n{:<34} {:>8} {:>8} {:>8} {:>8} {:>8} {:>10}\n",
        OUTAGE.as_secs(),
        answers.accepted.len(),
        "",
        "answers",
        "p50 ms",
        "p99 ms",
        "max ms",
        "not 200",
        "within 1 s"
    );
    let mut slowest = Duration::ZERO;
    for (end, times) in outages {
        let (gone, back) = match end {
            End::Stopped => ("(d) RabbitMQ is stopped", "    it starts, and gets the spool"),
            End::Killed => ("(d) RabbitMQ is killed", "    it starts, and gets the spool"),
        };
        let meanwhile = answers.between(times.gone, times.started);
        slowest = slowest.max(quantile(&meanwhile, 0.99));
        row(&mut text, gone, &meanwhile)?;
        row(&mut text, back, &answers.between(times.started, times.handed_over))?;
    }
    let verdict = if slowest < TARGET { "reached" } else { "missed" };
    writeln!(text, "\nThe target of a p99 below {} ms while the broker is away is {verdict}.\n", TARGET.as_millis())?;
    std::io::stdout().write_all(text.as_bytes())?;
    let refused = answers.all.iter().filter(|answer| !answer.accepted).count();
    ensure!(refused == 0, "{refused} answers were not 200");
    Ok(())
}

fn row(text: &mut String, name: &str, answers: &[Answer]) -> std::fmt::Result {
    let millis = |share| quantile(answers, share).as_secs_f64() * 1_000.0;
    let refused = answers.iter().filter(|answer| !answer.accepted).count();
    let in_time = answers.iter().filter(|answer| answer.took <= Duration::from_secs(1)).count();
    writeln!(
        text,
        "{name:<34} {:>8} {:>8.1} {:>8.1} {:>8.1} {refused:>8} {in_time:>10}",
        answers.len(),
        millis(0.5),
        millis(0.99),
        millis(1.0)
    )
}
