//! Rollcall's workers: what an event of their kind changes.
//!
//! - [`worker`]: what a worker is: a name and what a batch of events changes;
//! - [`attendance`], [`rooms`], [`recordings`]: the three, a rule each;
//! - `sessions` and `presence`: which session an event belongs to, and who was there for how long; attendance and rooms
//!   both derive from them;
//! - `dead_letters`: what died, out of the queue into the database;
//! - `keeping`: what is not kept any longer;
//! - `runner`: everything else, written once: batches, retries, dead letters, outages, shutdown, metrics;
//! - `heartbeat`: how a worker is doing, told to the database, and whether it shall rest;
//! - `stall`: whether it stands still although there is something to do;
//! - [`rebuild`]: everybody's rows derived again;
//! - [`program`]: one of them from its settings to its end;
//! - `cause`: what dead letters are grouped by;
//! - `sql`, `transaction`: small pieces of SQL; all or nothing, again at once where another transaction was in the way.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod attendance;
mod cause;
mod dead_letters;
mod heartbeat;
mod keeping;
mod presence;
pub mod program;
pub mod rebuild;
pub mod recordings;
pub mod rooms;
mod runner;
mod sessions;
mod sql;
mod stall;
mod transaction;
pub mod worker;
