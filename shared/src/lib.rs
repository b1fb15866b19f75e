//! What Rollcall's programs share, one module each.
//!
//! - [`causes`]: an error with its causes, each thing said once;
//! - [`config`]: `rollcall.toml` and the environment, checked before anything starts;
//! - [`dead_letters`]: what died, why, and what became of it;
//! - [`display`]: what others wrote, where people read it;
//! - [`erasure`]: people who are to be forgotten, and stay so;
//! - [`event`]: what happened in a room, in words that no server owns, and which worker wants it;
//! - [`oversight`]: which workers run, and which shall rest;
//! - [`plugnmeet`]: how a PlugNMeet server says it (`webhook`) and how one asks it back (`api`);
//! - [`signature`]: who really sent a webhook;
//! - [`private`]: who reads what lies on this machine's disk;
//! - [`queue`]: durable messages between the ingress and the workers; no AMQP type leaves it;
//! - [`shutdown`]: stopping when a signal says so;
//! - [`store`]: the database that integrators read;
//! - [`tls`]: which cryptography TLS uses;
//! - [`telemetry`]: logs, metrics, and the address that shows them.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod causes;
pub mod config;
#[cfg(feature = "store")]
pub mod dead_letters;
pub mod display;
#[cfg(feature = "store")]
pub mod erasure;
pub mod event;
#[cfg(feature = "store")]
pub mod oversight;
pub mod plugnmeet;
pub mod private;
pub mod queue;
pub mod shutdown;
pub mod signature;
#[cfg(feature = "store")]
pub mod store;
pub mod telemetry;
#[cfg(any(feature = "plugnmeet-api", feature = "management"))]
pub mod tls;
