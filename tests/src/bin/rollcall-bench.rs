//! `rollcall-bench`: how many webhooks a second come through on this machine, and how they fare in an outage. `make bench`
//! runs it; with arguments it runs only those sections.

use std::env;
use std::time::Duration;

use rollcall_tests::bench::{self, Plan, embedded, outage, server};
use tokio::runtime::Builder;

/// As many as there are rooms in which something happens all the time: enough to keep everybody busy.
const CONNECTIONS: usize = 256;
const WARM_UP: Duration = Duration::from_secs(3);
const MEASURED: Duration = Duration::from_secs(20);
/// The file grows by some 40 MB a second.
const EMBEDDED: Plan =
    Plan { connections: CONNECTIONS, warm_up: Duration::from_secs(2), measured: Duration::from_secs(8) };

const SECTIONS: [&str; 3] = ["ingress", "outage", "embedded"];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // What is measured has a runtime as the ingress has it; what measures is to take as little as it can.
        [server::COMMAND, api_key, secret] => {
            tokio::runtime::Runtime::new()?.block_on(server::serve(api_key.to_owned(), secret.to_owned()))
        }
        [] => SECTIONS.into_iter().try_for_each(run),
        ref sections => sections.iter().try_for_each(|section| run(section)),
    }
}

fn run(section: &str) -> anyhow::Result<()> {
    let measuring = || Builder::new_current_thread().enable_all().build();
    match section {
        "ingress" => {
            measuring()?.block_on(bench::run(Plan { connections: CONNECTIONS, warm_up: WARM_UP, measured: MEASURED }))
        }
        "outage" => measuring()?.block_on(outage::run()),
        // Here the queue is in this process, and has a runtime as `rollcall up` has it.
        "embedded" => tokio::runtime::Runtime::new()?.block_on(embedded::run(EMBEDDED)),
        other => anyhow::bail!("there is no section {other}: there are {}", SECTIONS.join(", ")),
    }
}
