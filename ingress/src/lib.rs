//! Takes PlugNMeet's webhooks over HTTP: verified, durable in the queue, answered.
//!
//! A webhook's way through the modules:
//!
//! - [`program`] sets everything up;
//! - [`server`] accepts its connection, and drains when told to stop; [`admission`] has a place for it, and says who goes where
//!   there is none;
//! - `tls` makes TLS of it, where the settings say so;
//! - `connection` reads its request and closes on who is too slow;
//! - [`webhook`] decides about it, from the path to the queue; `bodies` reads its body, or drops it;
//! - `answer` is what its sender is told;
//! - `metrics` counts it, and [`rejections`] keeps the last that were refused.
//!
//! This crate knows no database, no files and no rule: what an event means is for the workers.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admission;
mod answer;
mod bodies;
mod connection;
mod metrics;
pub mod program;
pub mod rejections;
pub mod server;
mod tls;
pub mod webhook;

use std::time::Duration;

pub use crate::metrics::describe as describe_metrics;

/// How long a sender may take, step by step.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// From connecting to the first byte.
    pub first_byte: Duration,
    /// From a request's first byte to the end of its headers.
    pub headers: Duration,
    /// From the end of a request's headers to the end of its body.
    pub body: Duration,
    /// From an answer to a server to its next request. PlugNMeet keeps one connection per room for as long as the room
    /// lives, and is silent on it for as long as nobody comes or goes.
    pub idle: Duration,
    /// From an answer to somebody who has signed nothing to their next request.
    pub stranger_idle: Duration,
    /// From when the peer took something of its answers to when it takes more.
    pub write: Duration,
    /// From an answer that was given before the body was read to closing the connection: see `connection`.
    pub linger: Duration,
}

/// How long the connection of somebody stays who has signed nothing: enough for a load balancer's checks, which come every
/// few seconds, and too little to fill `ingress.max_connections` with connections that cost a stranger nothing to keep.
const STRANGER_IDLE: Duration = Duration::from_mins(1);

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_byte: Duration::from_secs(10),
            headers: Duration::from_secs(10),
            body: Duration::from_secs(10),
            idle: Duration::from_hours(1),
            stranger_idle: STRANGER_IDLE,
            write: Duration::from_secs(10),
            linger: Duration::from_secs(2),
        }
    }
}
