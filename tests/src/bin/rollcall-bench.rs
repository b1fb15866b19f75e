//! `rollcall-bench`: how many webhooks a second the ingress takes in on this machine. `make bench` runs it.

use std::env;
use std::time::Duration;

use rollcall_tests::bench::{self, Plan, server};

/// As many as there are rooms in which something happens all the time: enough to keep everybody busy.
const CONNECTIONS: usize = 256;
const WARM_UP: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(20);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // What is measured has a runtime as the ingress has it; what measures is to take as little as it can.
        [server::COMMAND, api_key, secret] => {
            tokio::runtime::Runtime::new()?.block_on(server::serve(api_key.to_owned(), secret.to_owned()))
        }
        [] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(bench::run(Plan { connections: CONNECTIONS, warm_up: WARM_UP, measured: MEASURED }))
        }
        _ => anyhow::bail!("rollcall-bench takes no arguments: run `make bench`"),
    }
}
