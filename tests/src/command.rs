//! `rollcall`, as an operator types it.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::eventually;
use crate::installation::{Installation, program_path};

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

/// `rollcall` on a terminal: a pseudo-terminal that `script` of util-linux makes and copies to a file.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    keyboard: ChildStdin,
    screen: PathBuf,
}

impl Terminal {
    /// Runs `rollcall` with these arguments, which no shell may take for anything else, on a terminal of this size.
    pub fn open(installation: &Installation, rows: u16, columns: u16, arguments: &[&str]) -> Self {
        let config = installation.directory.join("settings-on-a-terminal.toml");
        std::fs::write(&config, installation.settings()).unwrap();
        let (program, arguments) = (program_path("rollcall"), arguments.join(" "));
        let run = format!(
            "stty rows {rows} cols {columns}; exec {} {arguments} --config {}",
            program.display(),
            config.display()
        );
        let screen = installation.directory.join("screen");
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", &run, "/dev/null"])
            .current_dir(&installation.directory)
            .env("TERM", "xterm")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(&screen).unwrap())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("script, of util-linux, cannot be started: {error}"));
        let keyboard = child.stdin.take().expect("it was asked for");
        Self { child, keyboard, screen }
    }

    /// All that was sent to the terminal.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.screen).unwrap()).into_owned()
    }

    /// Waits until this was sent to it so often.
    pub async fn shows(&self, text: &str, times: usize) {
        eventually(Duration::from_secs(60), || async {
            let output = self.output();
            if output.matches(text).count() >= times { Ok(()) } else { Err(output) }
        })
        .await;
    }

    /// Presses keys.
    pub async fn types(&mut self, keys: &[u8]) {
        self.keyboard.write_all(keys).await.unwrap();
        self.keyboard.flush().await.unwrap();
    }

    /// Waits until the command has ended: how, and all that was sent to the terminal.
    pub async fn closed(mut self) -> (ExitStatus, String) {
        let ended = timeout(Duration::from_secs(60), self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it goes on: {}", self.output())).unwrap();
        (status, self.output())
    }
}
