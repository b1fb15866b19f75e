//! The real programs, as processes of their own: found beside this one, configured by the environment, stopped at the
//! end whatever happens.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rollcall_shared::config::Settings;
use rollcall_shared::event::AnyWorker;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

const INGRESS: &str = "rollcall-ingress";
const WORKER: &str = "rollcall-worker";
/// How long a program may take to say that it is ready.
const START: Duration = Duration::from_secs(30);
/// How long a program may take to stop when it is asked to.
const STOP: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
/// How much of a log is shown when something fails.
const TAIL: usize = 15;

/// Every program of the pipeline, running.
#[derive(Debug)]
pub(super) struct Programs(Vec<Program>);

#[derive(Debug)]
struct Program {
    name: String,
    child: Child,
    admin: SocketAddr,
    /// It has ended by itself, and that was said.
    has_ended: bool,
}

/// Where the programs lie.
#[derive(Debug)]
pub(super) enum Binaries {
    /// This one, which is all of them.
    Own(PathBuf),
    /// The others.
    Each { ingress: PathBuf, worker: PathBuf },
}

impl Binaries {
    /// This program, or those beside it where each is to be `a_process_of_its_own`.
    pub(super) fn find(a_process_of_its_own: bool) -> Result<Self> {
        let own = std::env::current_exe().context("cannot tell where this program lies")?;
        if !a_process_of_its_own {
            return Ok(Self::Own(own));
        }
        let (ingress, worker) = (own.with_file_name(INGRESS), own.with_file_name(WORKER));
        let missing: Vec<&str> = [(INGRESS, &ingress), (WORKER, &worker)]
            .into_iter()
            .filter(|(_, path)| !path.is_file())
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            let folder = own.parent().unwrap_or(Path::new("/")).display();
            bail!("not found in {folder}: {}. `cargo build --workspace --bins` makes them", missing.join(", "));
        }
        Ok(Self::Each { ingress, worker })
    }
}

/// A port of this machine that is free now.
pub(super) fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?)
}

impl Programs {
    /// None yet.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Starts the ingress and one worker of each kind with these settings, and waits until each is ready.
    pub(super) async fn start(&mut self, binaries: &Binaries, settings: &Value, logs: &Path) -> Result<()> {
        let admin = serde_json::from_value::<Settings>(settings.clone())?.ingress.admin_address;
        match binaries {
            Binaries::Own(own) => {
                let mut command = Command::new(own);
                command.arg("up");
                self.spawn("rollcall up", command, admin, settings, logs)?;
            }
            Binaries::Each { ingress, worker } => {
                self.spawn(INGRESS, Command::new(ingress), admin, settings, logs)?;
                for name in AnyWorker::ALL {
                    self.spawn_worker(worker, name, settings, logs)?;
                }
            }
        }
        for program in &mut self.0 {
            program.ready().await?;
        }
        Ok(())
    }

    fn spawn_worker(&mut self, binary: &Path, worker: AnyWorker, settings: &Value, logs: &Path) -> Result<()> {
        let mut command = Command::new(binary);
        command.arg(worker.as_str());
        let admin = free_address()?;
        let mut settings = settings.clone();
        settings["workers"]["admin_address"] = json!(admin);
        self.spawn(&format!("{WORKER} {worker}"), command, admin, &settings, logs)
    }

    fn spawn(
        &mut self,
        name: &str,
        mut command: Command,
        admin: SocketAddr,
        settings: &Value,
        logs: &Path,
    ) -> Result<()> {
        let log = logs.join(format!("{}.log", name.replace(' ', "-")));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        for (variable, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(variable);
        }
        let child = command
            .envs(variables(settings))
            // No rollcall.toml of somebody else's lies there.
            .current_dir(logs)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C is for this program alone, which then stops the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.0.push(Program { name: name.to_owned(), child, admin, has_ended: false });
        Ok(())
    }

    /// Says which program has ended that should be running.
    pub(super) fn check(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Program::check)
    }

    /// Asks every program to stop, and waits; one that lingers is killed, and is an error.
    pub(super) async fn stop(&mut self) -> Result<()> {
        for program in &self.0 {
            program.signal(Signal::TERM);
        }
        let mut failures = Vec::new();
        for mut program in self.0.drain(..).filter(|program| !program.has_ended) {
            if let Err(error) = program.wait().await {
                failures.push(format!("{error:#}"));
            }
        }
        if failures.is_empty() { Ok(()) } else { bail!(failures.join("\n")) }
    }
}

impl Program {
    async fn ready(&mut self) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let url = format!("http://{}/readyz", self.admin);
        let deadline = Instant::now() + START;
        loop {
            self.check()?;
            let answer = client.get(&url).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let said = answer.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
                bail!("{} is not ready after {} s: {said}", self.name, START.as_secs());
            }
            sleep(POLL).await;
        }
    }

    fn check(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("cannot look after {}", self.name))? {
            None => Ok(()),
            Some(status) => {
                self.has_ended = true;
                bail!("{} has ended by itself: {status}", self.name)
            }
        }
    }

    async fn wait(&mut self) -> Result<()> {
        let waited: Result<std::io::Result<ExitStatus>, _> = timeout(STOP, self.child.wait()).await;
        match waited {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => bail!("{} did not stop as it should: {status}", self.name),
            Ok(Err(error)) => Err(error).with_context(|| format!("cannot look after {}", self.name)),
            Err(_) => {
                self.child.kill().await?;
                bail!("{} did not stop within {} s and was killed", self.name, STOP.as_secs())
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It fails only for one that has ended already.
            let _ = kill_process(pid, signal);
        }
    }
}

/// The end of every log in `logs`, for people who look for what went wrong.
pub(super) fn tails(logs: &Path) -> String {
    let mut files: Vec<PathBuf> =
        fs::read_dir(logs).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
    files.sort();
    let tail = |file: &PathBuf| {
        let text = fs::read(file).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(TAIL)..].join("\n");
        format!("--- the end of {}\n{last}\n", file.display())
    };
    files.iter().map(tail).collect()
}

fn is_setting(name: &OsString) -> bool {
    name.to_string_lossy().to_ascii_uppercase().starts_with("ROLLCALL__")
}

/// Settings as environment variables: `{"queue": {"url": "…"}}` is `ROLLCALL__QUEUE__URL`.
fn variables(settings: &Value) -> Vec<(String, String)> {
    fn walk(prefix: &str, value: &Value, variables: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(&format!("{prefix}__{}", name.to_uppercase()), value, variables);
                }
            }
            Value::String(text) => variables.push((prefix.to_owned(), text.clone())),
            other => variables.push((prefix.to_owned(), other.to_string())),
        }
    }
    let mut variables = Vec::new();
    walk("ROLLCALL", settings, &mut variables);
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_environment_variables() {
        let settings = json!({"queue": {"prefix": "demo-1", "url": "amqp://x"}, "workers": {"batch_size": 5}});
        assert_eq!(
            variables(&settings),
            [
                ("ROLLCALL__QUEUE__PREFIX".to_owned(), "demo-1".to_owned()),
                ("ROLLCALL__QUEUE__URL".to_owned(), "amqp://x".to_owned()),
                ("ROLLCALL__WORKERS__BATCH_SIZE".to_owned(), "5".to_owned()),
            ]
        );
    }
}
