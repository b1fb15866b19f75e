//! `rollcall.toml` and the environment, read once and checked before anything starts.
//!
//! The file is `rollcall.toml` in the working directory, or what `--config` names. The environment wins over it:
//! `ROLLCALL__QUEUE__URL` is `queue.url`. Times are written as people write them (`500ms`, `10s`, `5m`). A wrong
//! setting stops the start with its name, its value (never a secret's) and what is allowed.
//!
//! A file a table of the settings, with its defaults and what is checked of it; and beside them
//!
//! - `secret_url`, `retry`: kinds of values that more than one table has;
//! - `read`: values as people write them;
//! - `secret`: what a secret must be, and those that stand in files of their own (`<name>_file`);
//! - `error`: what is wrong, said without any secret;
//! - `advice`: what works and should not stay so.

mod advice;
mod database;
mod dead_letters;
mod error;
mod ingress;
mod log;
mod plugnmeet;
mod queue;
mod read;
mod recordings;
mod retry;
mod secret;
mod secret_url;
mod sessions;
mod storage;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use self::advice::Advice;
pub use self::database::Database;
pub use self::dead_letters::DeadLetters;
pub use self::error::ConfigError;
use self::error::{check, check_keep, check_time};
pub use self::ingress::{Ingress, Spool, Tls};
pub use self::log::{Log, LogFormat};
pub use self::plugnmeet::PlugNMeet;
pub use self::queue::Queue;
pub use self::recordings::Recordings;
pub use self::retry::RetrySchedule;
pub use self::secret_url::SecretUrl;
use self::secret_url::without_password;
pub use self::sessions::{Sessions, UnknownSessions};
pub use self::storage::Storage;
pub use self::workers::{Attendance, Rooms, Workers};
use crate::event::WorkerName;
use crate::signature::ServerKeys;

/// What every program may be told.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The broker.
    #[serde(default)]
    pub queue: Queue,
    /// The database; the ingress needs none.
    #[serde(default)]
    pub database: Database,
    /// Where recordings are kept.
    #[serde(default)]
    pub storage: Storage,
    /// The HTTP side.
    #[serde(default)]
    pub ingress: Ingress,
    /// The servers, by name: the name is an event's `source`.
    #[serde(default)]
    pub plugnmeet: BTreeMap<String, PlugNMeet>,
    /// What all workers have.
    #[serde(default)]
    pub workers: Workers,
    /// How attendance retries.
    #[serde(default)]
    pub attendance: Attendance,
    /// How rooms retries.
    #[serde(default)]
    pub rooms: Rooms,
    /// The recordings worker.
    #[serde(default)]
    pub recordings: Recordings,
    /// Dead letters.
    #[serde(default)]
    pub dead_letters: DeadLetters,
    /// Sessions nobody announced.
    #[serde(default)]
    pub sessions: Sessions,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// The files that secrets were read from.
    #[serde(skip)]
    pub secret_files: Vec<PathBuf>,
}

impl Settings {
    /// Reads `file`, or `rollcall.toml` in the working directory if there is one, then the environment.
    ///
    /// # Errors
    /// A file that was named is not there, a setting is unknown, missing, or has a value that it cannot have.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        check_names(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()))?;
        let source = match file {
            Some(file) => config::File::from(file).format(config::FileFormat::Toml),
            None => config::File::from(Path::new("rollcall.toml")).required(false),
        };
        let environment = config::Environment::with_prefix("ROLLCALL").prefix_separator("__").separator("__");
        Self::read(config::Config::builder().add_source(source).add_source(environment).build()?)
    }

    /// The names of the settings in a file that are secrets: who can read the file knows them.
    ///
    /// # Errors
    /// As of [`load`](Self::load), where the file cannot be read at all.
    pub fn secrets_in(file: &Path) -> Result<Vec<String>, ConfigError> {
        let source = config::File::from(file).format(config::FileFormat::Toml);
        let mut written = config::Config::builder().add_source(source).build()?;
        Ok(secret::held(&mut written.cache))
    }

    fn read(mut written: config::Config) -> Result<Self, ConfigError> {
        let secret_files = secret::read_files(&mut written.cache)?;
        let settings = Self { secret_files, ..written.try_deserialize()? };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.queue.check()?;
        self.database.check()?;
        self.storage.check()?;
        self.ingress.check()?;
        self.workers.check()?;
        self.attendance.check()?;
        self.dead_letters.check()?;
        self.recordings.check()?;
        self.log.check()?;
        plugnmeet::check_all(&self.plugnmeet)
    }

    /// The delays before an event that a worker failed at is tried again.
    pub fn retry(&self, worker: WorkerName) -> &RetrySchedule {
        match worker {
            WorkerName::Attendance => &self.attendance.retry,
            WorkerName::Rooms => &self.rooms.retry,
            WorkerName::Recordings => &self.recordings.retry,
        }
    }

    /// The keys of every server that may sign webhooks.
    pub fn server_keys(&self) -> Vec<ServerKeys> {
        let keys = |(name, server): (&String, &PlugNMeet)| ServerKeys {
            source: name.clone(),
            api_key: server.api_key.clone(),
            secrets: server.secrets().map(|(_, secret)| secret.clone()).collect(),
            schemes: server.signatures.clone(),
        };
        self.plugnmeet.iter().map(keys).collect()
    }
}

const SECOND: Duration = Duration::from_secs(1);
pub(crate) const NAME: &str = "it is made of lower-case letters, digits, - and _, 60 at most";

/// Names become parts of routing keys and queue names, where a dot separates.
pub(crate) fn is_name(text: &str) -> bool {
    (1..=60).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// Whether the environment has a variable that is meant as a setting and is none, for want of an underscore.
fn check_names(mut names: impl Iterator<Item = String>) -> Result<(), ConfigError> {
    let setting = |name: &str| {
        let setting = name.strip_prefix("ROLLCALL_")?;
        (!setting.starts_with('_') && setting.contains("__")).then(|| format!("ROLLCALL__{setting}"))
    };
    let misspelt = names.find_map(|name| Some((setting(&name)?, name)));
    misspelt.map_or(Ok(()), |(right, wrong)| {
        Err(ConfigError::Read(format!("the environment variable {wrong} sets nothing: it is spelt {right}")))
    })
}
