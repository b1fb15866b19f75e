//! Dead letters: whether somebody takes them out of the queue, and how many wait for somebody.

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::{Filter, State, find};
use rollcall_shared::event::AnyWorker;
use rollcall_shared::oversight;

use super::finding::Finding;
use crate::migrate;
use crate::output::counted;

const CHECK: &str = "dead letters";

pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    // Why not is told by the check of the database.
    look(settings).await.unwrap_or_else(|_| vec![Finding::not_made(CHECK, "the database does not tell")])
}

async fn look(settings: &Settings) -> Result<Vec<Finding>> {
    let db = migrate::migrated(&settings.database.url, 1).await?;
    let worker = AnyWorker::DeadLetters;
    let processes = oversight::processes(&db).await?;
    let runs = processes.iter().any(|process| process.worker == worker.as_str() && process.is_alive());
    let dead = find::count(&db, &Filter { states: vec![State::Dead], ..Filter::default() }).await?;
    let lately = oversight::died_since(&db, Utc::now() - TimeDelta::days(1)).await?;
    let mut findings = Vec::new();
    if !runs {
        let found =
            format!("no worker {worker} runs: what dies stays in the queue, where rollcall dlq does not see it");
        let todo = format!("start it: rollcall-worker {worker}, or rollcall up");
        findings.push(Finding::warning(CHECK, found, todo));
    }
    if dead > 0 {
        let found = format!("{} for somebody, {lately} since yesterday", counted(dead, "waits", "wait"));
        findings.push(Finding::warning(CHECK, found, "rollcall dlq groups says of what they died"));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("none waits for anybody, and the worker {worker} runs")));
    }
    Ok(findings)
}
