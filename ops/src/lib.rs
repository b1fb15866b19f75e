//! What the operator's tool `rollcall` and the end-to-end tests share: a stand-in for a PlugNMeet server.
//!
//! The tool itself is `main.rs` and one module a subcommand beside it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod standin;
