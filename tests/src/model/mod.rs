//! A model of the queue, and a test that drives the real programs with random steps and compares.
//!
//! - [`books`]: the model: what was accepted, and where each event may be;
//! - [`plan`]: the steps of a round, drawn from a seed;
//! - [`traces`]: what an event looks like, and by what it is told again;
//! - [`world`]: the programs, the broker, the clocks and the disk, and how each step is done to them;
//! - [`round`]: one round: its steps, then quiet, then the books.
//!
//! `ROLLCALL_MODEL_SEED` begins with that seed instead of the clock's; `ROLLCALL_MODEL_MINUTES` says how long to go on.

#![allow(clippy::print_stdout, reason = "what is done, with which seed, and what came of it is told")]

pub mod books;
pub mod plan;
mod round;
mod traces;
mod world;

use std::time::{Duration, Instant};

use chrono::Utc;

use self::plan::{BackEnd, Plan};
use self::round::Round;
use self::world::World;

/// Plays rounds for so many minutes, or as the environment says, each with the next seed.
///
/// # Panics
/// The books were wrong after a round: what was wrong and how it came to that was printed after that round.
pub async fn play(back_end: BackEnd, minutes: f64) {
    let minutes = variable("ROLLCALL_MODEL_MINUTES").unwrap_or(minutes);
    let first = variable("ROLLCALL_MODEL_SEED").unwrap_or_else(|| Utc::now().timestamp().unsigned_abs());
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut world = World::new(back_end).await;
    let mut wrong = Vec::new();
    for seed in first.. {
        let began = Instant::now();
        let plan = Plan::new(seed, back_end);
        println!("{back_end:?}, {plan}");
        match Round::play(&mut world, plan).await {
            Ok(totals) => println!("{back_end:?}, seed {seed}: {totals}, in {:.0?}", began.elapsed()),
            Err(failure) => {
                println!("{back_end:?}, seed {seed} FAILED after {:.0?}:\n{failure}", began.elapsed());
                wrong.push(seed);
                drop(world);
                world = World::new(back_end).await;
            }
        }
        if Instant::now() > end {
            break;
        }
    }
    assert!(wrong.is_empty(), "on {back_end:?}, the books were wrong after the rounds of the seeds {wrong:?}");
}

fn variable<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}
