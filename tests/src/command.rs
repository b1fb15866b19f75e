//! `rollcall`, as an operator types it.

use std::time::Duration;

use crate::installation::Installation;

/// How long a command may take: some wait for workers.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a command went.
#[derive(Debug)]
pub struct Done {
    /// Whether its exit status was 0.
    pub success: bool,
    /// What it said on standard output.
    pub stdout: String,
    /// What it said on standard error.
    pub stderr: String,
}

/// Runs `rollcall` with these arguments on the installation's settings, until it ends.
pub async fn rollcall(installation: &Installation, arguments: &[&str]) -> Done {
    let mut process = installation.spawn("rollcall", arguments);
    let status = process.ended_within(PATIENCE).await;
    Done { success: status.success(), stdout: process.output(), stderr: process.log() }
}
