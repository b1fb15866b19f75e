//! `rollcall.toml` and the environment, read once and checked before anything starts.
//!
//! The file is `rollcall.toml` in the working directory, or what `--config` names. The environment wins over it:
//! `ROLLCALL__QUEUE__URL` is `queue.url`. Times are written as people write them (`500ms`, `10s`, `5m`). A wrong
//! setting stops the start with its name, its value (never a secret's) and what is allowed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use serde::Deserialize;
use serde::de::{self, Deserializer};
use url::Url;

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
}

/// `[queue]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// `sqlite://path` for a file on this machine, or RabbitMQ: `amqp://user:password@host:5672/vhost`, `amqps://…`; of a cluster
    /// any number of hosts, with commas between them.
    pub url: SecretUrl,
    /// What every exchange and queue is named after, so that two installations can share a broker.
    pub prefix: String,
    /// Where RabbitMQ's management plugin is, for what AMQP does not tell: `http://user:password@host:15672`.
    pub management_url: Option<SecretUrl>,
}

/// `[database]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://user:password@host/name?sslmode=…`, or `sqlite://path`.
    pub url: SecretUrl,
}

/// `[storage]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `file:///absolute/folder`.
    #[serde(deserialize_with = "storage_url")]
    pub url: Url,
}

/// `[ingress]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ingress {
    /// Where webhooks are taken.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are shown: not for the world.
    #[serde(deserialize_with = "address")]
    pub admin_address: SocketAddr,
    /// The names that it is asked for by, beside `localhost` and this machine's own: in the environment with commas between
    /// them.
    #[serde(deserialize_with = "list")]
    pub admin_hosts: Vec<String>,
    /// The paths that webhooks are posted to; in the environment with commas between them.
    #[serde(deserialize_with = "list")]
    pub paths: Vec<String>,
    /// The longest body that is taken, in bytes.
    pub max_body_bytes: usize,
    /// The memory for bodies that are too long for their connection's buffer, all together, in bytes.
    pub max_bodies_bytes: usize,
    /// The most connections at once.
    pub max_connections: usize,
    /// The most of them from one address, of IPv6 one /64, that have never shown a good signature.
    pub max_unsigned_per_address: usize,
    /// The proxies, by address or network, that are believed where a request comes from; in the environment with commas
    /// between them.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    /// How long RabbitMQ may take to confirm one event before it is kept on disk instead.
    #[serde(deserialize_with = "duration")]
    pub confirm_timeout: Duration,
    /// How long what is under way may take to finish when the program is told to stop.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
    /// Where events wait while RabbitMQ does not take them; the embedded queue needs none.
    pub spool: Spool,
}

/// `[ingress.spool]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// The file.
    pub path: PathBuf,
    /// The most that may wait in it, in bytes.
    pub max_bytes: u64,
    /// How much of its disk stays free, in bytes.
    pub min_free_bytes: u64,
}

/// `[plugnmeet.<name>]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlugNMeet {
    /// The server's own address, `https://meet.example.org`; recordings are fetched there.
    pub url: Url,
    /// Its API key.
    pub api_key: String,
    /// Its API secret.
    pub api_secret: SecretString,
    /// The secret before that, good as long as it stands here: for changing it without losing a webhook.
    pub previous_secret: Option<SecretString>,
}

/// `[workers]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workers {
    /// Where a worker shows `/healthz`, `/readyz` and `/metrics`; nowhere unless told.
    #[serde(deserialize_with = "some_address")]
    pub admin_address: Option<SocketAddr>,
    /// As the ingress's.
    #[serde(deserialize_with = "list")]
    pub admin_hosts: Vec<String>,
    /// The most events in one transaction.
    pub batch_size: usize,
    /// How long to wait for a batch to fill once it has begun.
    #[serde(deserialize_with = "duration")]
    pub batch_wait: Duration,
    /// How long what is under way may take to finish when the program is told to stop.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
}

/// `[attendance]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attendance {
    /// The delays before a failed event is tried again.
    pub retry: RetrySchedule,
}

/// `[rooms]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rooms {
    /// The delays before a failed event is tried again.
    pub retry: RetrySchedule,
}

/// `[recordings]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recordings {
    /// The delays before a recording that cannot be had yet is asked for again.
    pub retry: RetrySchedule,
    /// How many recordings one process fetches at once.
    pub concurrency: usize,
    /// Where a recording lies while it is fetched; beside its final place where that is a folder.
    pub work_dir: Option<PathBuf>,
    /// How long a delivery waits for its job before it is handed back and the job goes on under its lease.
    #[serde(deserialize_with = "duration")]
    pub hold: Duration,
    /// How long a lease lasts that is not renewed: how soon another worker takes over from one that died.
    #[serde(deserialize_with = "duration")]
    pub lease: Duration,
    /// How long a server may be silent in the middle of an answer.
    #[serde(deserialize_with = "duration")]
    pub read_timeout: Duration,
    /// The `ffmpeg` program.
    pub ffmpeg: PathBuf,
    /// The `ffprobe` program.
    pub ffprobe: PathBuf,
    /// How long either may take for one recording.
    #[serde(deserialize_with = "duration")]
    pub ffmpeg_timeout: Duration,
}

/// `[dead_letters]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// How long a dead letter is kept that was applied after all, or dropped.
    #[serde(deserialize_with = "duration")]
    pub keep: Duration,
}

/// `[sessions]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sessions {
    /// What becomes of a session that the LMS has not announced.
    pub unknown: UnknownSessions,
}

/// What becomes of a session that the LMS has not announced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum UnknownSessions {
    /// It gets a row of its own.
    #[default]
    Create,
    /// Its events wait for the LMS and die in the end.
    Reject,
}

/// `[log]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// What to log, a level and levels of parts: `info`, `info,rollcall_workers=debug`.
    pub filter: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// For people or for machines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

// The `config` crate's own error for an unknown variant does not say which there are.
impl TryFrom<String> for UnknownSessions {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "create" => Ok(Self::Create),
            "reject" => Ok(Self::Reject),
            _ => Err(format!("{text:?} is neither \"create\" nor \"reject\"")),
        }
    }
}

impl TryFrom<String> for LogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is none of \"auto\", \"text\" and \"json\"")),
        }
    }
}

impl Default for Queue {
    fn default() -> Self {
        let url = SecretUrl::parse("sqlite://data/queue.db").expect("a constant URL parses");
        Self { url, prefix: "rollcall".into(), management_url: None }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { url: SecretUrl::parse("sqlite://data/rollcall.db").expect("a constant URL parses") }
    }
}

impl Default for Storage {
    fn default() -> Self {
        // Beside the queue and the database.
        let folder = std::path::absolute("data/media").unwrap_or_else(|_| "/var/lib/rollcall/media".into());
        Self { url: Url::from_file_path(folder).expect("the path is absolute") }
    }
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin_address: SocketAddr::from(([127, 0, 0, 1], 9090)),
            admin_hosts: Vec::new(),
            // The second is where the Django integration took them.
            paths: vec!["/webhooks/plugnmeet".into(), "/api/course/plugnmeet/webhook/".into()],
            max_body_bytes: 1024 * 1024,
            max_bodies_bytes: 64 * 1024 * 1024,
            max_connections: 20_000,
            max_unsigned_per_address: 500,
            trusted_proxies: Vec::new(),
            confirm_timeout: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(20),
            spool: Spool::default(),
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        // PlugNMeet's webhooks have 4 KB: some 200,000 of them.
        Self { path: "data/spool.db".into(), max_bytes: 1 << 30, min_free_bytes: 256 << 20 }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            admin_address: None,
            admin_hosts: Vec::new(),
            batch_size: 200,
            batch_wait: Duration::from_millis(5),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for Attendance {
    fn default() -> Self {
        Self { retry: RetrySchedule::of_seconds(&[1, 5, 30, 120, 600, 1800]) }
    }
}

impl Default for Rooms {
    fn default() -> Self {
        Self { retry: RetrySchedule::of_seconds(&[1, 5, 30, 120, 600, 1800]) }
    }
}

impl Default for Recordings {
    fn default() -> Self {
        Self {
            // Transcoding takes minutes to hours, so the later steps are long: about a day in all.
            retry: RetrySchedule::of_seconds(&[
                30, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 14_400, 21_600, 28_800,
            ]),
            concurrency: 4,
            work_dir: None,
            hold: Duration::from_mins(3),
            lease: Duration::from_mins(1),
            read_timeout: Duration::from_secs(30),
            ffmpeg: "ffmpeg".into(),
            ffprobe: "ffprobe".into(),
            ffmpeg_timeout: Duration::from_mins(2),
        }
    }
}

impl Default for DeadLetters {
    fn default() -> Self {
        // Longer than a term's holidays.
        Self { keep: Duration::from_hours(24 * 90) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Auto }
    }
}

/// The delays before a failed event is tried again, shortest first: each has a queue of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule(Vec<Duration>);

impl RetrySchedule {
    fn of_seconds(seconds: &[u64]) -> Self {
        Self(seconds.iter().copied().map(Duration::from_secs).collect())
    }

    /// Every delay, shortest first, each once.
    pub fn delays(&self) -> &[Duration] {
        &self.0
    }
}

impl<'de> Deserialize<'de> for RetrySchedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut delays = list(deserializer)?
            .iter()
            .map(|text| retry_delay(text).map_err(de::Error::custom))
            .collect::<Result<Vec<_>, _>>()?;
        delays.sort_unstable();
        delays.dedup();
        if delays.is_empty() {
            return Err(de::Error::custom("a retry schedule is one or more delays, such as \"1s, 5m\""));
        }
        Ok(Self(delays))
    }
}

/// RabbitMQ counts a time to live in milliseconds, up to 32 bits of them.
fn retry_delay(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = (Duration::from_millis(1), Duration::from_hours(24 * 31));
    match humantime::parse_duration(text) {
        Ok(delay) if (shortest..=longest).contains(&delay) => Ok(delay),
        Ok(_) => Err(format!("{text:?} is no delay of a retry schedule: it is from 1ms to 31days")),
        Err(error) => Err(format!("{text:?} is no delay such as \"500ms\", \"10s\" or \"5m\": {error}")),
    }
}

/// A URL that may hold a password: it prints without it.
#[derive(Clone)]
pub struct SecretUrl(std::sync::Arc<SecretBox<String>>);

impl SecretUrl {
    /// A URL of any scheme; with several hosts, if it is one of a broker.
    ///
    /// # Errors
    /// The text is not a URL.
    pub fn parse(text: &str) -> Result<Self, url::ParseError> {
        for url in each_host(text) {
            Url::parse(&url)?;
        }
        Ok(Self(std::sync::Arc::new(SecretBox::new(Box::new(text.to_owned())))))
    }

    /// The URL as it was written, password and all.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// The same URL for each of its hosts, password and all.
    pub fn each_host(&self) -> Vec<String> {
        each_host(self.expose())
    }

    /// The file that a `sqlite://` URL names: `sqlite://data/queue.db` is in the working directory, `sqlite:///srv/queue.db` is
    /// not.
    pub fn sqlite_path(&self) -> Option<PathBuf> {
        let path = self.expose().strip_prefix("sqlite://")?;
        Some(path.split('?').next().unwrap_or(path).into())
    }

    fn is_file(&self) -> bool {
        self.sqlite_path().is_some_and(|path| path.file_name().is_some())
    }

    fn starts_with(&self, schemes: &[&str]) -> bool {
        schemes.iter().any(|scheme| self.expose().starts_with(scheme))
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one_host = self.each_host().swap_remove(0);
        let Ok(url) = Url::parse(&one_host) else { return f.write_str("[not a URL]") };
        let shown = without_password(url);
        match (around_hosts(self.expose()), around_hosts(&shown)) {
            (Some((_, hosts, _)), Some((before, _, after))) if hosts.contains(',') => {
                write!(f, "{before}{hosts}{after}")
            }
            _ => f.write_str(&shown),
        }
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for SecretUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The value is not repeated: it may hold a password even where it does not parse.
        Self::parse(&text).map_err(|error| {
            de::Error::custom(format!("not a URL: {error} (in a user or password, write # / : @ as %23 %2F %3A %40)"))
        })
    }
}

/// What stands before the hosts of a broker's URL, the hosts, and what stands after them.
fn around_hosts(url: &str) -> Option<(&str, &str, &str)> {
    if !["amqp://", "amqps://"].iter().any(|scheme| url.starts_with(scheme)) {
        return None;
    }
    let authority = url.find("://")? + 3;
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |end| authority + end);
    let hosts = url[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    Some((&url[..hosts], &url[hosts..end], &url[end..]))
}

/// A URL for each host of a broker's; any other URL as it is.
fn each_host(url: &str) -> Vec<String> {
    match around_hosts(url) {
        Some((before, hosts, after)) => hosts.split(',').map(|host| format!("{before}{host}{after}")).collect(),
        None => vec![url.to_owned()],
    }
}

/// Why the settings cannot be used: says which one, what it is and what is allowed. No secret is ever in it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file or the environment cannot be read as settings.
    #[error("{0}")]
    Read(String),
    /// A setting has a value that it cannot have.
    #[error("setting {name} is {value:?}: {allowed}")]
    Invalid {
        /// The setting's name.
        name: String,
        /// Its value, without any password.
        value: String,
        /// What it may be instead.
        allowed: &'static str,
    },
}

/// The `config` crate repeats values, and TOML's errors the line they stand in: either may be a secret.
impl From<config::ConfigError> for ConfigError {
    fn from(error: config::ConfigError) -> Self {
        Self::Read(without_values(&error))
    }
}

fn without_values(error: &config::ConfigError) -> String {
    let of_key = |key: &Option<String>| key.as_ref().map(|key| format!("setting {key}: ")).unwrap_or_default();
    match error {
        config::ConfigError::Type { expected, key, .. } => format!("{}expected {expected}", of_key(key)),
        config::ConfigError::At { error, key, .. } => format!("{}{}", of_key(key), without_values(error)),
        config::ConfigError::FileParse { uri, cause } => {
            let file = uri.as_deref().unwrap_or("the settings");
            // The excerpt is what has a line number or nothing before its bar.
            let is_excerpt = |line: &&str| line.split_once('|').is_some_and(|(before, _)| is_blank_or_number(before));
            let cause = cause.to_string();
            let lines: Vec<_> = cause.lines().filter(|line| !is_excerpt(line)).collect();
            format!("{file} is not TOML: {}", lines.join(": "))
        }
        // serde's own words begin like this, and repeat the value.
        other => match other.to_string() {
            text if text.starts_with("invalid type") || text.starts_with("invalid value") => {
                text.split_once(", expected ").map_or("not of this kind".into(), |(_, kind)| format!("expected {kind}"))
            }
            text => text,
        },
    }
}

fn is_blank_or_number(text: &str) -> bool {
    text.bytes().all(|byte| byte == b' ' || byte.is_ascii_digit())
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
        let settings: Self =
            config::Config::builder().add_source(source).add_source(environment).build()?.try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), ConfigError> {
        check(
            self.queue.url.starts_with(&["amqp://", "amqps://"]) || self.queue.url.is_file(),
            "queue.url",
            &self.queue.url,
            "it is sqlite:// and the path of a file on this machine, or amqp://user:password@host:5672/%2f or amqps://…, \
             with %2f for the virtual host /, and of a cluster several hosts: amqp://user:password@host1,host2:5672/%2f",
        )?;
        check(is_name(&self.queue.prefix), "queue.prefix", &self.queue.prefix, NAME)?;
        if let Some(management) = &self.queue.management_url {
            check(
                management.starts_with(&["http://", "https://"]),
                "queue.management_url",
                management,
                "it is where RabbitMQ's management plugin answers, http://user:password@host:15672",
            )?;
        }
        let database = &self.database.url;
        check(
            database.starts_with(&["postgres://", "postgresql://"]) || database.is_file(),
            "database.url",
            database,
            "it is sqlite:// and the path of a file on this machine, or postgres://user:password@host/name",
        )?;
        let storage = &self.storage.url;
        check(storage.scheme() == "file" && storage.to_file_path().is_ok(), "storage.url", storage, STORAGE_URL)?;
        self.check_ingress()?;
        self.check_workers()?;
        self.check_recordings()?;
        self.check_servers()
    }

    fn check_ingress(&self) -> Result<(), ConfigError> {
        let Ingress {
            paths,
            max_body_bytes,
            max_bodies_bytes,
            max_connections,
            max_unsigned_per_address,
            confirm_timeout,
            ..
        } = &self.ingress;
        for path in paths {
            check(path.starts_with('/'), "ingress.paths", path, "a path starts with /")?;
        }
        check(!paths.is_empty(), "ingress.paths", &"empty", "there is one at least")?;
        check(
            // A webhook has about 4 KB, and RabbitMQ 4 takes no message that is longer than 16 MiB.
            (16 * 1024..=16 * 1024 * 1024).contains(max_body_bytes),
            "ingress.max_body_bytes",
            max_body_bytes,
            "it is from 16384 to 16777216",
        )?;
        check(
            *max_bodies_bytes / 4 >= *max_body_bytes,
            "ingress.max_bodies_bytes",
            max_bodies_bytes,
            "it is four times ingress.max_body_bytes or more",
        )?;
        check(*max_connections > 0, "ingress.max_connections", max_connections, "it is 1 or more")?;
        check(
            *max_unsigned_per_address > 0,
            "ingress.max_unsigned_per_address",
            max_unsigned_per_address,
            "it is 1 or more: a server's connection too has no signature at first",
        )?;
        check(!confirm_timeout.is_zero(), "ingress.confirm_timeout", &"0s", "it is longer than nothing")
    }

    fn check_workers(&self) -> Result<(), ConfigError> {
        let Workers { batch_size, batch_wait, .. } = &self.workers;
        check((1..=5_000).contains(batch_size), "workers.batch_size", batch_size, "it is from 1 to 5000")?;
        check_time("workers.batch_wait", *batch_wait, Duration::ZERO..=SECOND, "it is 1s at most")
    }

    fn check_recordings(&self) -> Result<(), ConfigError> {
        let Recordings { concurrency, hold, lease, read_timeout, ffmpeg_timeout, .. } = &self.recordings;
        check((1..=100).contains(concurrency), "recordings.concurrency", concurrency, "it is from 1 to 100")?;
        let longest = Duration::from_mins(10);
        check(
            *hold <= longest && (SECOND..=longest).contains(lease),
            "recordings.hold and recordings.lease",
            &format!("{hold:?} and {lease:?}"),
            "either is 10m at most, and the lease 1s at least",
        )?;
        check_time("recordings.read_timeout", *read_timeout, SECOND..=longest, "it is from 1s to 10m")?;
        let hour = Duration::from_hours(1);
        check_time("recordings.ffmpeg_timeout", *ffmpeg_timeout, SECOND..=hour, "it is from 1s to 1h")
    }

    fn check_servers(&self) -> Result<(), ConfigError> {
        let mut seen = BTreeMap::new();
        for (name, server) in &self.plugnmeet {
            let secrets = std::iter::once(&server.api_secret).chain(&server.previous_secret);
            for secret in secrets {
                let twin = seen.insert(secret.expose_secret(), name);
                check(
                    twin.is_none_or(|twin| twin == name),
                    &format!("plugnmeet.{name}.api_secret"),
                    &"that of another server",
                    "a webhook's signature must tell which server sent it: give each server a secret of its own",
                )?;
            }
            check(is_name(name), "plugnmeet.<name>", name, NAME)?;
            check(
                matches!(server.url.scheme(), "http" | "https"),
                &format!("plugnmeet.{name}.url"),
                &without_password(server.url.clone()),
                "it starts with http:// or https://",
            )?;
            check(
                !server.api_secret.expose_secret().is_empty() && !server.api_key.is_empty(),
                &format!("plugnmeet.{name}"),
                &"an empty api_key or api_secret",
                "both are those of the server's config.yaml, client.api_key and client.secret",
            )?;
        }
        Ok(())
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
            secrets: std::iter::once(&server.api_secret).chain(&server.previous_secret).cloned().collect(),
        };
        self.plugnmeet.iter().map(keys).collect()
    }
}

/// A URL to show. One that has no `//` may be a user and a password whose scheme was forgotten.
fn without_password(mut url: Url) -> String {
    if !url.has_authority() {
        return "***".to_owned();
    }
    if url.password().is_some() && url.set_password(Some("***")).is_err() {
        return "***".to_owned();
    }
    // `sslpassword` and its like; what else stands there helps nobody enough to risk it.
    url.set_query(None);
    url.into()
}

const SECOND: Duration = Duration::from_secs(1);
const STORAGE_URL: &str = "it is file:// and an absolute folder, file:///var/lib/rollcall/media";
const NAME: &str = "it is made of lower-case letters, digits, - and _, 60 at most";

/// Names become parts of routing keys and queue names, where a dot separates.
fn is_name(text: &str) -> bool {
    (1..=60).contains(&text.len()) && text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

fn check(good: bool, name: &str, value: &dyn fmt::Display, allowed: &'static str) -> Result<(), ConfigError> {
    if good { Ok(()) } else { Err(ConfigError::Invalid { name: name.to_owned(), value: value.to_string(), allowed }) }
}

fn check_time(
    name: &str,
    value: Duration,
    range: RangeInclusive<Duration>,
    allowed: &'static str,
) -> Result<(), ConfigError> {
    check(range.contains(&value), name, &humantime::format_duration(value), allowed)
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

/// A number alone is text too.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(|_| {
        de::Error::custom(format!("{text:?} is no IP address with a port, such as \"0.0.0.0:8080\" or \"[::1]:8080\""))
    })
}

fn some_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer).map(Some)
}

/// The value is not repeated: what is no URL may be anything.
fn storage_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    Url::parse(&text).map_err(|error| de::Error::custom(format!("not a URL ({error}): {STORAGE_URL}")))
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(|error| {
        de::Error::custom(format!("{text:?} is no time such as \"500ms\", \"10s\" or \"5m\": {error}"))
    })
}

/// Networks, and single addresses as networks of one; an IPv4 address is one in whatever way it is written.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let network = |text: &String| {
        let address = text.parse().map(|address: IpAddr| IpNet::from(address.to_canonical()));
        address.or_else(|_| text.parse()).map_err(|_| {
            de::Error::custom(format!(
                "{text:?} is no IP address and no network such as \"10.0.0.0/8\" or \"fd00::/8\""
            ))
        })
    };
    list(deserializer)?.iter().map(network).collect()
}

/// A list, or one string with commas between its parts, as the environment has it.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum List {
        Text(String),
        Parts(Vec<String>),
    }
    Ok(match List::deserialize(deserializer)? {
        List::Text(text) => text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        List::Parts(parts) => parts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str) -> Result<Settings, ConfigError> {
        let settings: Settings = config::Config::builder()
            .add_source(config::File::from_str(toml, config::FileFormat::Toml))
            .build()?
            .try_deserialize()?;
        settings.check()?;
        Ok(settings)
    }

    fn twins() -> String {
        let server = |name| format!("[plugnmeet.{name}]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'\n");
        server("a") + &server("b")
    }

    const QUEUE: &str = "queue.url = 'amqp://user:hunter2@broker/%2f'\n";

    #[test]
    fn little_needs_to_be_said() {
        let settings = load(&format!(
            "{QUEUE}[plugnmeet.main]\nurl='https://meet.example.org'\napi_key='k'\napi_secret='s'\nprevious_secret='p'"
        ))
        .unwrap();
        assert_eq!(settings.queue.prefix, "rollcall");
        assert_eq!(settings.ingress.max_body_bytes, 1_048_576);
        let keys = settings.server_keys();
        assert_eq!((keys[0].source.as_str(), keys[0].secrets.len()), ("main", 2));
    }

    #[test]
    fn a_wrong_setting_is_named_and_no_secret_is_told() {
        for (toml, expected) in [
            ("queue.url = 'redis://u:hunter2@h'", "setting queue.url is \"redis://u:***@h\": it is sqlite://"),
            ("queue.url = 'guest:hunter2@h:5672'", "setting queue.url is \"***\": it is sqlite://"),
            ("queue.url = 'amqp:guest:hunter2@h'", "setting queue.url is \"***\": it is sqlite://"),
            ("queue.url = 'amqp://u:hunter#2@h'", "%23"),
            ("queue.url = amqp://u:hunter2@h", "line 1"),
            (&format!("{QUEUE}plugnmeet.a.api_secret = \"hunter2"), "line 2"),
            (&format!("{QUEUE}[plugnmeet]\napi_secret = 'hunter2'"), "setting plugnmeet.api_secret: expected"),
            (&format!("{QUEUE}database.url = 'rollcall:hunter2@h/d'"), "setting database.url is \"***\""),
            (&format!("{QUEUE}database.url = 'postgres:u:hunter2@h/d'"), "setting database.url is \"***\""),
            ("queue.url = 'hunter2'", "not a URL"),
            (&format!("{QUEUE}queue.prefix = 'a.b'"), "setting queue.prefix is \"a.b\""),
            (
                &format!("{QUEUE}queue.management_url = 'amqp://u:hunter2@h'"),
                "setting queue.management_url is \"amqp://u:***@h\": it is where",
            ),
            (&format!("{QUEUE}queue.management_url = 'u:hunter2@h:15672'"), "setting queue.management_url is \"***\""),
            (&format!("{QUEUE}storage.url = 's3://b'"), "setting storage.url is \"s3://b\""),
            (&format!("{QUEUE}database.url = 'mysql://u:hunter2@h/d'"), "mysql://u:***@h/d"),
            (&format!("{QUEUE}ingress.adress = 'x'"), "adress"),
            (&format!("{QUEUE}ingress.address = 'x'"), "ingress.address"),
            (&format!("{QUEUE}ingress.confirm_timeout = 'soon'"), "confirm_timeout"),
            (&format!("{QUEUE}ingress.paths = ['x']"), "setting ingress.paths is \"x\""),
            (&format!("{QUEUE}ingress.paths = []"), "setting ingress.paths is \"empty\""),
            (&format!("{QUEUE}ingress.max_connections = 0"), "setting ingress.max_connections is \"0\""),
            (&format!("{QUEUE}{}", twins()), "setting plugnmeet.b.api_secret is \"that of another server"),
            (&format!("{QUEUE}workers.batch_size = 0"), "setting workers.batch_size is \"0\": it is from 1"),
            (&format!("{QUEUE}attendance.retry = []"), "one or more delays"),
            (&format!("{QUEUE}attendance.retry = ['999us']"), "setting attendance.retry: \"999us\" is no delay"),
            (&format!("{QUEUE}rooms.retry = '1s, 32days'"), "it is from 1ms to 31days"),
            (&format!("{QUEUE}rooms.retry = '1s, soon'"), "setting rooms.retry: \"soon\" is no delay such as"),
            (
                &format!("{QUEUE}ingress.address = 8081"),
                "setting ingress.address: \"8081\" is no IP address with a port",
            ),
            (&format!("{QUEUE}ingress.admin_address = ':8081'"), "such as \"0.0.0.0:8080\""),
            (&format!("{QUEUE}workers.admin_address = 'x'"), "setting workers.admin_address: \"x\" is no IP"),
            (
                &format!("{QUEUE}storage.url = '/srv'"),
                "setting storage.url: not a URL (relative URL without a base): it is",
            ),
            (&format!("{QUEUE}storage.url = 'hunter2'"), "file:///var/lib/rollcall/media"),
            (
                &format!("{QUEUE}ingress.max_body_bytes = 0"),
                "setting ingress.max_body_bytes is \"0\": it is from 16384",
            ),
            (&format!("{QUEUE}ingress.max_body_bytes = 16777217"), "to 16777216"),
            (&format!("{QUEUE}workers.batch_wait = '2s'"), "setting workers.batch_wait is \"2s\": it is 1s at most"),
            (
                &format!("{QUEUE}recordings.read_timeout = '0s'"),
                "setting recordings.read_timeout is \"0s\": it is from 1s",
            ),
            (&format!("{QUEUE}recordings.ffmpeg_timeout = '2h'"), "setting recordings.ffmpeg_timeout is \"2h\": it is"),
            (&format!("{QUEUE}sessions.unknown = 'drop'"), "reject"),
            (&format!("{QUEUE}[plugnmeet.\"A.b\"]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'"), "A.b"),
            (&format!("{QUEUE}[plugnmeet.a]\nurl='ftp://u:hunter2@x'\napi_key='k'\napi_secret='s'"), "plugnmeet.a.url"),
            (&format!("{QUEUE}[plugnmeet.a]\nurl='http://x'\napi_key='k'\napi_secret=''"), "client.api_key"),
            (&format!("{QUEUE}[plugnmeet.a]\nurl='http://x'\napi_key='k'\napi_secret='hunter2'\nsecret=''"), "secret"),
        ] {
            let error = load(toml).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains(expected), "{toml}: {text}");
            assert!(!text.contains("hunter2"), "{toml}: {text}");
        }
    }

    #[test]
    fn the_url_of_a_cluster_names_several_hosts() {
        let url = SecretUrl::parse("amqps://user:hunter,2@a.example:5673,[::1],c:1/%2fvhost?heartbeat=5").unwrap();
        let of = |host| format!("amqps://user:hunter,2@{host}/%2fvhost?heartbeat=5");
        assert_eq!(url.each_host(), ["a.example:5673", "[::1]", "c:1"].map(of));
        assert_eq!(url.to_string(), "amqps://user:***@a.example:5673,[::1],c:1/%2fvhost");
        assert_eq!(SecretUrl::parse("amqp://a,b").unwrap().to_string(), "amqp://a,b");
        let one = SecretUrl::parse("amqp://user:hunter,2@a/%2f").unwrap();
        assert_eq!(
            (one.to_string(), one.each_host()),
            ("amqp://user:***@a/%2f".into(), vec!["amqp://user:hunter,2@a/%2f".into()])
        );
        for wrong in
            ["amqp://user:hunter2@a:5672,b:port/%2f", "amqp://user:hunter2@a,/%2f", "amqp://user:hunter2@,a/%2f"]
        {
            let error = load(&format!("queue.url = '{wrong}'")).unwrap_err().to_string();
            assert!(error.contains("queue.url") && !error.contains("hunter2"), "{error}");
        }
        // A comma is no host's elsewhere.
        let file = SecretUrl::parse("sqlite://data/a,b.db").unwrap();
        assert_eq!((file.each_host().len(), file.sqlite_path()), (1, Some("data/a,b.db".into())));
    }

    #[test]
    fn a_variable_that_lacks_an_underscore_is_named() {
        let check = |names: &[&str]| check_names(names.iter().map(|&name| name.to_owned()));
        check(&["PATH", "ROLLCALL__QUEUE__URL", "ROLLCALL_DEV", "ROLLCALL_TEST_AMQP_URL", "ROLLCALL_API_SECRET"])
            .unwrap();
        let error = check(&["ROLLCALL_DEV", "ROLLCALL_QUEUE__URL"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "the environment variable ROLLCALL_QUEUE__URL sets nothing: it is spelt ROLLCALL__QUEUE__URL"
        );
    }

    #[test]
    fn a_retry_schedule_is_a_list_or_one_string() {
        let delays = |toml: &str| load(&format!("{QUEUE}{toml}")).unwrap().rooms.retry.delays().to_vec();
        let expected = vec![Duration::from_millis(500), Duration::from_secs(2)];
        assert_eq!(delays("rooms.retry = ['2s', '500ms', '2s']"), expected);
        assert_eq!(delays("rooms.retry = '500ms, 2s'"), expected);
    }

    #[test]
    fn settings_print_without_their_secrets() {
        let settings = load(&format!(
            "{QUEUE}queue.management_url = 'http://u:hunter2@h:15672'\n\
             [plugnmeet.main]\nurl='https://x'\napi_key='k'\napi_secret='hunter2'\nprevious_secret='hunter2'"
        ))
        .unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"));
    }
}
