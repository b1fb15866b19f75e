//! What the end-to-end tests share. They know Rollcall as a stranger does: its programs, HTTP, AMQP, SQL.
//!
//! - [`services`]: the broker and the database that `make test` starts, and more of them where a test breaks one;
//! - [`installation`]: a queue prefix and a database of a test's own, and the programs that run on them;
//! - [`webhooks`]: posting signed events, and which were accepted;
//! - [`wire`]: the same by hand, byte by byte;
//! - [`joins`]: the simplest of events, and how many have come through;
//! - [`load`]: webhooks that go on while things break;
//! - [`steady`]: as many webhooks a second whatever happens, and how long each answer took;
//! - [`command`]: `rollcall`, as an operator types it;
//! - [`broker`]: what waits in which queue;
//! - [`proxy`]: a way to a server that can fall silent;
//! - [`fixtures`]: classes captured from a real server;
//! - [`classes`]: classes made up from who was truly there;
//! - [`model`]: what may be where, whatever happens, and a test of that with random steps;
//! - [`bench`]: how many webhooks a second the ingress takes in.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]
#![allow(clippy::missing_panics_doc)]

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Makes tests of functions that take an installation: each on RabbitMQ and PostgreSQL, and on the files of one machine.
#[macro_export]
macro_rules! on_both_back_ends {
    ($($test:ident),+ $(,)?) => {
        mod on_servers {
            $(#[tokio::test] async fn $test() { super::$test($crate::installation::Installation::new().await).await; })+
        }
        mod on_files {
            $(#[tokio::test] async fn $test() { super::$test($crate::installation::Installation::on_files().await).await; })+
        }
    };
}

pub mod bench;
pub mod broker;
pub mod classes;
pub mod command;
pub mod fixtures;
pub mod installation;
pub mod joins;
pub mod load;
pub mod model;
pub mod proxy;
pub mod services;
pub mod steady;
pub mod webhooks;
pub mod wire;

/// Lets this process have as many open files as it may.
pub fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Waits until `met` says so, asking again and again; what it said then.
///
/// # Panics
/// It has not come to that within `limit`: with what `met` said last.
pub async fn eventually<T, F: Future<Output = Result<T, String>>>(limit: Duration, mut met: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match met().await {
            Ok(met) => return met,
            Err(last) => assert!(Instant::now() < deadline, "not within {limit:?}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
