//! The end-to-end tests, one program: linking it costs more than compiling it, so it is linked once.
//!
//! A module alone is `deploy/dev/with-services cargo test -p rollcall-tests --test suite faults::`.

#![allow(clippy::unwrap_used)]

mod amqp_faults;
mod attacks;
mod attendance;
mod broker_faults;
mod classes;
mod cluster;
mod database_faults;
mod dead_letters;
mod doctor;
mod dying;
mod faults;
mod gigabyte;
mod idle;
mod many_dead_letters;
mod migrations;
mod queue;
mod queue_file;
mod queue_model;
mod races;
mod recordings;
mod spool;
mod start;
mod status;
mod webhooks;
