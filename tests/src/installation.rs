//! A queue prefix and a database of a test's own, and the programs that run on them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::config::{SecretUrl, Settings};
use rollcall_shared::store;
use rustix::process::{Pid, Signal, kill_process};
use sea_orm::{ConnectionTrait as _, DatabaseConnection, Statement};
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::{eventually, services};

/// How long a program may take to be ready, or to stop, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the tests' own sessions with a database are called.
const OURS: &str = "rollcall-tests";
/// The sessions with a database that are not the tests' own.
const OF_PROGRAMS: &str = "FROM pg_stat_activity WHERE datname = current_database() AND application_name <> 'rollcall-tests' \
                           AND backend_type = 'client backend'";

/// One installation of Rollcall, apart from all others.
pub struct Installation {
    /// The tables.
    pub db: DatabaseConnection,
    /// Where its settings, logs and media are.
    pub directory: PathBuf,
    /// The broker's URL.
    pub broker_url: String,
    /// The queues' prefix.
    pub prefix: String,
    database_url: String,
    servers: BTreeMap<String, Server>,
    more: BTreeMap<String, String>,
}

/// A PlugNMeet server in the settings.
#[derive(Debug, Clone)]
pub struct Server {
    /// The API key.
    pub api_key: String,
    /// The API secret.
    pub secret: String,
    /// The one before, while it is rotated.
    pub previous_secret: Option<String>,
    /// Where its API is.
    pub url: String,
}

impl Installation {
    /// On the broker and the database server that all tests share, with one server `main` (key `key`, secret `secret`).
    pub async fn new() -> Self {
        Self::on(&services::shared_broker(), &services::shared_postgres()).await
    }

    /// On a broker and a database server of the test's choice.
    pub async fn on(broker_url: &str, postgres_url: &str) -> Self {
        let id = new_id();
        let (db, database_url) = create_database(postgres_url, &id).await;
        Self::with(id, db, broker_url.to_owned(), database_url)
    }

    /// On the files of one machine, with nothing installed.
    pub async fn on_files() -> Self {
        let id = new_id();
        let data = services::directory().join(&id).join("data");
        std::fs::create_dir_all(&data).unwrap();
        let database_url = format!("sqlite://{}/rollcall.db", data.display());
        let db = store::connect(&SecretUrl::parse(&format!("{database_url}?mode=rwc")).unwrap(), 1).await.unwrap();
        Migrator::up(&db, None).await.unwrap();
        Self::with(id, db, format!("sqlite://{}/queue.db", data.display()), database_url)
    }

    fn with(id: String, db: DatabaseConnection, broker_url: String, database_url: String) -> Self {
        let directory = services::directory().join(&id);
        std::fs::create_dir_all(&directory).unwrap();
        let mut installation = Self {
            db,
            directory,
            broker_url,
            prefix: id,
            database_url,
            servers: BTreeMap::new(),
            more: BTreeMap::new(),
        };
        installation.server("main", "key", "secret", "http://127.0.0.1:1");
        installation.set("log.filter", "info");
        // Where the queue is used by the test itself, it is not beside the test.
        installation.set("ingress.spool.path", installation.directory.join("data/spool.db").display());
        for worker in ["attendance", "rooms", "recordings"] {
            installation.set(&format!("{worker}.retry"), "200ms,1s,2s");
        }
        installation
    }

    /// Whether its queue is a file.
    pub fn is_on_files(&self) -> bool {
        self.broker_url.starts_with("sqlite:")
    }

    /// Adds a PlugNMeet server.
    pub fn server(&mut self, name: &str, api_key: &str, secret: &str, url: &str) {
        let server = Server { api_key: api_key.into(), secret: secret.into(), previous_secret: None, url: url.into() };
        self.servers.insert(name.to_owned(), server);
    }

    /// Rotates the secret of the server of this name: the one that it had stays good.
    pub fn rotate(&mut self, name: &str, secret: &str) {
        let server = self.servers.get_mut(name).unwrap();
        server.previous_secret = Some(std::mem::replace(&mut server.secret, secret.to_owned()));
    }

    /// The server of this name.
    pub fn keys(&self, name: &str) -> &Server {
        &self.servers[name]
    }

    /// Programs that are started from now on reach the database by this address.
    pub fn reach_database_by(&mut self, address: SocketAddr) {
        let server = self.database_address().to_string();
        self.database_url = self.database_url.replace(&server, &address.to_string());
    }

    /// Where the programs reach the database server.
    pub fn database_address(&self) -> SocketAddr {
        let (_, from_host) = self.database_url.rsplit_once('@').unwrap();
        from_host.split('/').next().unwrap().parse().unwrap()
    }

    /// Sets one of PostgreSQL's settings for every session of the programs: `name = value`. Those that they have are ended.
    pub async fn set_in_database(&self, setting: &str) {
        let alter = format!("BEGIN READ WRITE; ALTER DATABASE {} SET {setting}; COMMIT", self.prefix);
        self.db.execute_unprepared(&alter).await.unwrap();
        self.end_database_sessions().await;
    }

    /// Ends the sessions that the programs have with the database, as an operator or a fail-over does.
    pub async fn end_database_sessions(&self) {
        let end = format!("SELECT pg_terminate_backend(pid) {OF_PROGRAMS}");
        self.db.execute_unprepared(&end).await.unwrap();
    }

    /// How many sessions the programs have with the database.
    pub async fn database_sessions(&self) -> i64 {
        let count = Statement::from_string(self.db.get_database_backend(), format!("SELECT count(*) {OF_PROGRAMS}"));
        self.db.query_one_raw(count).await.unwrap().unwrap().try_get_by_index(0).unwrap()
    }

    /// Sets a setting by its dotted name.
    pub fn set(&mut self, name: &str, value: impl ToString) {
        self.more.insert(name.to_owned(), value.to_string());
    }

    /// Starts an ingress on a free port.
    pub async fn ingress(&self) -> Ingress {
        self.spawn("rollcall-ingress", &[]).listens().await
    }

    /// Starts everything in one process, on free ports.
    pub async fn up(&self) -> Ingress {
        self.spawn("rollcall", &["up"]).listens().await
    }

    /// Starts a worker, and waits until it takes deliveries.
    pub async fn worker(&self, name: &str) -> Process {
        let process = self.spawn("rollcall-worker", &[name]);
        process.logs("taking deliveries").await;
        process
    }

    /// Starts `count` each of the attendance and the rooms worker.
    pub async fn attendance_and_rooms(&self, count: usize) -> Vec<Process> {
        let mut processes = Vec::new();
        for _ in 0..count {
            for name in ["attendance", "rooms"] {
                processes.push(self.spawn("rollcall-worker", &[name]));
            }
        }
        for process in &processes {
            process.logs("taking deliveries").await;
        }
        processes
    }

    /// Starts a program that was built with the tests, on these settings.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        self.start::<&str>(&[], program, arguments, None)
    }

    /// Starts a program by another, which is given the program's path and arguments behind its own and becomes it.
    pub fn spawn_by(&self, by: &[impl AsRef<OsStr>], program: &str, arguments: &[&str]) -> Process {
        self.start(by, program, arguments, None)
    }

    /// Starts a program whose log goes elsewhere.
    pub fn spawn_logging_to(&self, stderr: Stdio, program: &str, arguments: &[&str]) -> Process {
        self.start::<&str>(&[], program, arguments, Some(stderr))
    }

    fn start<S: AsRef<OsStr>>(&self, by: &[S], program: &str, arguments: &[&str], stderr: Option<Stdio>) -> Process {
        let log = new_log(&self.directory, program, arguments);
        // One each: a program may read its settings while the next one's are written.
        let config = log.with_extension("toml");
        std::fs::write(&config, self.settings()).unwrap();
        std::fs::set_permissions(&config, Permissions::from_mode(0o600)).unwrap();
        let path = program_path(program);
        let mut words = by.iter().map(AsRef::as_ref).chain([path.as_os_str()]);
        let mut command = Command::new(words.next().expect("there is the program at least"));
        command.args(words).args(arguments).arg("--config").arg(&config).current_dir(&self.directory);
        Process::start(command, log, stderr)
    }

    /// The settings as the programs read them.
    pub fn load_settings(&self) -> Settings {
        let file = self.directory.join("settings-of-the-test.toml");
        std::fs::write(&file, self.settings()).unwrap();
        Settings::load(Some(&file)).unwrap()
    }

    /// The settings as a file of them.
    pub fn settings(&self) -> String {
        let mut settings = format!(
            "queue.url = {:?}\nqueue.prefix = {:?}\ndatabase.url = {:?}\nstorage.url = \"file://{}\"\n\
             ingress.address = \"127.0.0.1:0\"\ningress.admin_address = \"127.0.0.1:0\"\nlog.format = \"json\"\n",
            self.broker_url,
            self.prefix,
            self.database_url,
            self.media().display(),
        );
        for (name, value) in &self.more {
            writeln!(settings, "{name} = {value:?}").unwrap();
        }
        for (name, server) in &self.servers {
            let Server { api_key, secret, previous_secret, url } = server;
            writeln!(settings, "[plugnmeet.{name}]\nurl = {url:?}\napi_key = {api_key:?}\napi_secret = {secret:?}")
                .unwrap();
            if let Some(previous) = previous_secret {
                writeln!(settings, "previous_secret = {previous:?}").unwrap();
            }
        }
        settings
    }

    /// Where recordings are archived.
    pub fn media(&self) -> PathBuf {
        self.directory.join("media")
    }
}

/// A folder in which programs run as somebody starts them there: on its rollcall.toml, if there is one.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one.
    pub fn new() -> Self {
        let folder = services::directory().join(new_id());
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Writes its rollcall.toml.
    pub fn settings(&self, settings: &str) {
        std::fs::write(self.0.join("rollcall.toml"), settings).unwrap();
    }

    /// Starts a program in it.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Process {
        self.spawn_by(&["env"], program, arguments)
    }

    /// Starts a program in it by another, which is given the program's path and arguments behind its own and becomes it.
    pub fn spawn_by(&self, by: &[&str], program: &str, arguments: &[&str]) -> Process {
        let mut command = Command::new(by[0]);
        command.args(&by[1..]).arg(program_path(program)).args(arguments).current_dir(&self.0);
        Process::start(command, new_log(&self.0, program, arguments), None)
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

fn new_log(directory: &Path, program: &str, arguments: &[&str]) -> PathBuf {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let arguments = arguments.join("-").replace('/', "_");
    directory.join(format!("{program}-{arguments}-{run}.log"))
}

fn new_id() -> String {
    format!("t{}", &Uuid::new_v4().simple().to_string()[..10])
}

async fn create_database(server: &str, name: &str) -> (DatabaseConnection, String) {
    let admin = store::connect(&SecretUrl::parse(server).unwrap(), 1).await.unwrap();
    admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
    let (before, _) = server.rsplit_once('/').unwrap();
    let url = format!("{before}/{name}");
    let ours = SecretUrl::parse(&format!("{url}?application_name={OURS}")).unwrap();
    let db = store::connect(&ours, 4).await.unwrap();
    Migrator::up(&db, None).await.unwrap();
    (db, url)
}

/// Beside the tests' own executables, where cargo puts the workspace's programs.
pub fn program_path(program: &str) -> PathBuf {
    let mut directory = std::env::current_exe().unwrap();
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory.join(program)
}

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// A running ingress.
#[derive(Debug)]
pub struct Ingress {
    /// The program.
    pub process: Process,
    /// Where it takes webhooks.
    pub address: SocketAddr,
    /// Where it shows its metrics.
    pub admin: SocketAddr,
}

impl Ingress {
    /// Whether it is ready, and what it says about that.
    pub async fn readiness(&self) -> (StatusCode, String) {
        rollcall_shared::tls::use_ring();
        let answer = reqwest::get(format!("http://{}/readyz", self.admin)).await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    /// What a metric without labels is now, if it was ever set.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        metric(self.admin, name).await
    }
}

/// What a metric without labels is now at an admin address, if it was ever set.
pub async fn metric(admin: SocketAddr, name: &str) -> Option<f64> {
    rollcall_shared::tls::use_ring();
    let text = reqwest::get(format!("http://{admin}/metrics")).await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

impl Process {
    fn start(mut command: Command, log: PathBuf, stderr: Option<Stdio>) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(log.with_extension("out")).unwrap())
            .stderr(stderr.unwrap_or_else(|| std::fs::File::create(&log).unwrap().into()))
            .env("RUST_BACKTRACE", "0")
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started ({error}): run the tests by `make test`"));
        Self { child, log }
    }

    /// What it has said on standard output.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.log.with_extension("out")).unwrap_or_default()
    }

    /// Waits until it says where it takes webhooks.
    pub async fn listens(self) -> Ingress {
        let (address, admin) = eventually(PATIENCE, || async { self.listening().ok_or_else(|| self.tail()) }).await;
        Ingress { process: self, address, admin }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the program has ended")
    }

    /// SIGTERM; waits until it has ended, and that well.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not stop: {}", self.tail())).unwrap();
        assert!(status.success(), "it ended with {status}: {}", self.tail());
    }

    /// SIGKILL; waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        self.ended_within(PATIENCE).await
    }

    /// Waits until it ends by itself, for so long.
    pub async fn ended_within(&mut self, limit: Duration) -> std::process::ExitStatus {
        tokio::time::timeout(limit, self.child.wait()).await.expect("it goes on").unwrap()
    }

    /// How it has ended, if it has.
    pub fn has_ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until its log says `text`.
    pub async fn logs(&self, text: &str) {
        eventually(PATIENCE, || async {
            if self.log().contains(text) { Ok(()) } else { Err(format!("no {text:?} in {}", self.tail())) }
        })
        .await;
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where its log is, and its last lines.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        format!("{}:\n{}", self.log.display(), lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    fn listening(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.log().lines().find_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            let address = |name: &str| line.get(name)?.as_str()?.parse().ok();
            Some((address("address")?, address("admin_address")?))
        })
    }
}

/// How much memory a process has resident, and had at most, in KiB.
pub fn memory_kib(process: &Process) -> (u64, u64) {
    let status = std::fs::read_to_string(Path::new("/proc").join(process.id().to_string()).join("status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("VmHWM:"))
}
