//! The ingress as a sender of webhooks meets it, without a broker.

#![allow(clippy::unwrap_used)]

mod crowds;
mod http;
mod program;
mod support;
