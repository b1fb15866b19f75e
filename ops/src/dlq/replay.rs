//! `rollcall dlq replay`: dead letters back to their workers, and what becomes of it.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::HumanCount;
use rollcall_shared::dead_letters::find::{self, Share};
use rollcall_shared::dead_letters::replay::{ReplayError, Report, Run, Standing, standing};
use rollcall_shared::dead_letters::{By, Filter, State};
use rollcall_shared::queue::Queue;
use rollcall_shared::shutdown;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::left_out::LeftOut;
use super::select::SelectSome;
use super::{Tool, ask_if_many, groups, hindrance, letters, none};
use crate::output;
use crate::progress::Progress;
use crate::table::Table;
use crate::who::Who;

/// How often it is asked what has become of a run.
const LOOK: Duration = Duration::from_millis(500);

/// After how long it is looked whether their workers run at all, and how often: one that has just started tells within it.
const HINDRANCE_LOOK: Duration = Duration::from_secs(5);

/// How many of those that cannot be sent are named.
const MOST_NAMED: usize = 10;

/// Send dead letters back to their workers.
///
/// It ends when all of them are in the queues for certain; what their workers make of them comes then, and --wait waits for
/// that. It can be interrupted, even killed, and run again: what is sent twice has the same effect as once. What dies again
/// is dead again, with one failure more in its history.
///
/// Exits with 1 where something was not sent, or, with --wait, was not applied: it died again, was dropped, was taken over by
/// another replay, or the time was up.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall dlq replay 17 18
  rollcall dlq replay --cause plugnmeet-away --dry-run
  rollcall dlq replay --cause plugnmeet-away --wait --timeout 10m
  rollcall dlq replay --all --rate 200 --reason 'the database is back'")]
pub(super) struct Args {
    /// Only say what would be sent.
    #[arg(long)]
    dry_run: bool,
    /// The most that are sent in a second.
    #[arg(long, value_name = "N")]
    rate: Option<NonZeroU32>,
    /// Wait until all were applied or died again, and say how many.
    #[arg(long)]
    wait: bool,
    /// How long to wait for that, such as 10m; without it, for ever.
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Why, for the history.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    who: Who,
    /// Do not ask, even where they are more than 100.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    select: SelectSome,
}

pub(super) async fn run(tool: &Tool, args: &Args) -> Result<ExitCode> {
    let filter = args.select.filter(State::Dead, &[State::Replaying])?;
    let left_out = LeftOut::of(tool, &filter).await?;
    let shares = find::shares(&tool.db, &filter).await?;
    let count = shares.iter().map(|share| share.count.unsigned_abs()).sum();
    if args.dry_run {
        return dry_run(tool, &shares, count, &left_out);
    }
    if count == 0 {
        let mut json = json!({ "sent": 0 });
        left_out.add_to(&mut json);
        if !tool.printed_json(&json)? {
            output::print(format_args!("{}: nothing was sent", none(tool, &filter).await?))?;
        }
        left_out.tell();
        return Ok(status(left_out.is_empty()));
    }
    ask_if_many(count, args.yes, &format!("{} will be sent back to their workers.", letters(count)))?;
    let by = By { name: args.who.name(), reason: args.reason.clone() };
    let run = Replaying { tool, run: Run::new(by, args.rate), left_out, stop: shutdown::on_signals()? };
    run.to_the_end(&filter, count, args.wait.then_some(args.timeout)).await
}

/// Sends a few without a question.
pub(super) async fn now(tool: &Tool, filter: Filter, by: By) -> Result<ExitCode> {
    let left_out = LeftOut::of(tool, &filter).await?;
    let run = Replaying { tool, run: Run::new(by, None), left_out, stop: shutdown::on_signals()? };
    run.to_the_end(&filter, 1, None).await
}

fn dry_run(tool: &Tool, shares: &[Share], count: u64, left_out: &LeftOut) -> Result<ExitCode> {
    let json = |share: &Share| {
        let Share { worker, event, cause, count } = share;
        json!({ "worker": worker, "event": event, "cause": cause, "count": count })
    };
    let mut all = json!({ "would_send": count, "of": shares.iter().map(json).collect::<Vec<_>>() });
    left_out.add_to(&mut all);
    left_out.tell();
    if tool.printed_json(&all)? {
        return Ok(status(left_out.is_empty()));
    }
    if count > 0 {
        let mut table = Table::new(&["COUNT", "WORKER", "EVENT", "CAUSE"]).numbers("COUNT");
        for Share { worker, event, cause, count } in shares {
            table.row([count.to_string(), worker.clone(), event.clone(), cause.clone()]);
        }
        output::print(table.whole())?;
    }
    output::print(format_args!("{} would be sent back to their workers", letters(count)))?;
    Ok(status(left_out.is_empty()))
}

struct Replaying<'a> {
    tool: &'a Tool,
    run: Run,
    left_out: LeftOut,
    stop: CancellationToken,
}

impl Replaying<'_> {
    /// Sends, waits where that is wanted (for no longer than that), and tells of both.
    async fn to_the_end(&self, filter: &Filter, count: u64, wait: Option<Option<Duration>>) -> Result<ExitCode> {
        let report = self.send(filter, count).await?;
        let is_sent = self.is_sent(&report);
        if !self.tool.json {
            self.tell(&report, count, wait.is_some())?;
        }
        self.left_out.tell();
        let Some(timeout) = wait.filter(|_| report.sent > 0) else {
            self.tool.printed_json(&self.json(&report, count, None))?;
            return Ok(status(is_sent));
        };
        let standing = self.wait(report.sent, timeout).await?;
        let died = Filter { states: vec![State::Dead], ..Filter::of_run(&self.run.id) };
        let causes = find::groups(&self.tool.db, &died).await?;
        let is_applied = standing.applied == report.sent;
        if self.tool.json {
            let causes: Vec<_> = causes
                .iter()
                .map(|group| json!({ "worker": group.worker, "cause": group.cause, "count": group.count }))
                .collect();
            self.tool.printed_json(&self.json(&report, count, Some((standing, causes))))?;
        } else {
            self.tell_standing(standing, taken_over(&report, standing))?;
            if !causes.is_empty() {
                output::print(groups::table(causes, &died).fitted())?;
            }
        }
        Ok(status(is_sent && is_applied))
    }

    async fn send(&self, filter: &Filter, count: u64) -> Result<Report> {
        let queue = &self.tool.settings.queue;
        let sender = Queue::open(queue, "rollcall dlq replay")?.sender().await?;
        let progress = Progress::new("sending", count);
        let report = self.run.replay(&self.tool.db, &sender, filter, &self.stop, |more| progress.add(more)).await;
        sender.close().await;
        Ok(report)
    }

    /// Whether everything that was wanted is in the queues, and is known to be.
    fn is_sent(&self, report: &Report) -> bool {
        let Report { unmarked, passed, error, .. } = report;
        error.is_none() && *passed == 0 && *unmarked == 0 && self.left_out.is_empty() && !self.stop.is_cancelled()
    }

    fn tell(&self, report: &Report, count: u64, waits: bool) -> Result<()> {
        let Report { sent, unmarked, passed, impossible, error } = report;
        let run = &self.run.id;
        output::print(format_args!("{} of {} sent back (run {run})", HumanCount(*sent), letters(count)))?;
        for (id, why) in impossible.iter().take(MOST_NAMED) {
            output::complain(format_args!("not sent: {id}: {why}"));
        }
        let changed = passed.saturating_sub(impossible.len() as u64);
        if changed > 0 {
            output::print(format_args!("{} not: somebody has changed them meanwhile", letters(changed)))?;
        }
        if *unmarked > 0 {
            output::complain(format_args!("{unmarked} of those sent could not be marked so"));
        }
        let rest = "the others are as they were: run the same again to go on";
        if let Some(error) = error {
            output::complain(format_args!("it broke off: {error}"));
            output::complain(format_args!("{}; {rest}", self.way_out(error)));
        } else if self.stop.is_cancelled() {
            output::complain(format_args!("stopped; {rest}"));
        }
        if *sent > 0 && !waits {
            output::print(format_args!("what becomes of them: rollcall dlq groups --run {run}"))?;
        }
        Ok(())
    }

    fn way_out(&self, error: &ReplayError) -> String {
        let settings = &self.tool.settings;
        let (what, url) = match error {
            ReplayError::Queue(_) => ("queue", &settings.queue.url),
            ReplayError::Database(_) => ("database", &settings.database.url),
        };
        format!("see that the {what} {url} can be used, as `rollcall doctor` looks")
    }

    /// What has become of the run when nothing of it waits any more, or time is up.
    async fn wait(&self, sent: u64, timeout: Option<Duration>) -> Result<Standing> {
        let begun = Instant::now();
        let progress = Progress::new("waiting for the workers", sent);
        progress.say("waiting until their workers have told; Ctrl-C ends the waiting, and nothing else");
        let (mut told, mut look) = (BTreeSet::new(), begun + HINDRANCE_LOOK);
        loop {
            let standing = standing(&self.tool.db, &self.run.id).await.context("cannot see what has become of them")?;
            progress.set(sent.saturating_sub(standing.replaying));
            let is_up = timeout.is_some_and(|timeout| begun.elapsed() >= timeout);
            if standing.replaying == 0 || is_up || self.stop.is_cancelled() {
                return Ok(standing);
            }
            if Instant::now() >= look {
                self.tell_hindrances(&progress, &mut told).await?;
                look = Instant::now() + HINDRANCE_LOOK;
            }
            self.stop.run_until_cancelled(sleep(LOOK)).await;
        }
    }

    /// Says what keeps the rest from being applied, when that begins.
    async fn tell_hindrances(&self, progress: &Progress, told: &mut BTreeSet<String>) -> Result<()> {
        let hindrances = hindrance::of_run(&self.tool.db, &self.run.id).await.context("cannot see who runs")?;
        for hindrance in &hindrances {
            if !told.contains(hindrance) {
                progress.say(hindrance);
            }
        }
        *told = hindrances.into_iter().collect();
        Ok(())
    }

    fn tell_standing(&self, standing: Standing, taken_over: u64) -> Result<()> {
        let Standing { replaying, applied, dead, dropped } = standing;
        let mut said = vec![format!("{} applied", HumanCount(applied)), format!("{} died again", HumanCount(dead))];
        if dropped > 0 {
            said.push(format!("{} dropped meanwhile", HumanCount(dropped)));
        }
        if taken_over > 0 {
            said.push(format!(
                "{} taken over by another replay, or dropped before its worker had it",
                HumanCount(taken_over)
            ));
        }
        if replaying > 0 {
            said.push(format!("{} still wait for their workers", HumanCount(replaying)));
        }
        output::print(said.join(", "))?;
        if replaying > 0 {
            output::print(format_args!("what becomes of them: rollcall dlq groups --run {}", self.run.id))?;
        }
        Ok(())
    }

    fn json(&self, report: &Report, count: u64, followed: Option<(Standing, Vec<Value>)>) -> Value {
        let impossible: Vec<_> = report.impossible.iter().map(|(id, why)| json!({ "id": id, "error": why })).collect();
        let mut json = json!({
            "run": self.run.id,
            "selected": count,
            "sent": report.sent,
            "unmarked": report.unmarked,
            "changed_meanwhile": report.passed.saturating_sub(report.impossible.len() as u64),
            "impossible": impossible,
            "interrupted": self.stop.is_cancelled(),
            "error": report.error.as_ref().map(ToString::to_string),
        });
        self.left_out.add_to(&mut json);
        if let Some((standing, causes)) = followed {
            let taken_over = taken_over(report, standing);
            let Standing { replaying, applied, dead, dropped } = standing;
            json["result"] = json!({
                "applied": applied, "died_again": dead, "dropped": dropped, "replaying": replaying,
                "taken_over": taken_over, "causes": causes,
            });
        }
        json
    }
}

/// How many of those that were sent and marked are no more of this run.
fn taken_over(report: &Report, standing: Standing) -> u64 {
    report.sent.saturating_sub(report.unmarked).saturating_sub(standing.count())
}

fn status(is_well: bool) -> ExitCode {
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
