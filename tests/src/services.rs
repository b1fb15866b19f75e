//! The broker and the database that `make test` starts, and more of them where a test breaks one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run the tests by `make test`"))
}

/// The broker that all tests share, each under a prefix of its own.
pub fn shared_broker() -> String {
    variable("ROLLCALL_TEST_AMQP_URL")
}

/// The database server that all tests share, each with a database of its own.
pub fn shared_postgres() -> String {
    variable("ROLLCALL_TEST_POSTGRES_URL")
}

/// Where tests put what they make; removed at the end of the run.
pub fn directory() -> PathBuf {
    variable("ROLLCALL_TEST_DIR").into()
}

/// A server of a test's own, to be broken.
#[derive(Debug)]
pub struct Server {
    script: PathBuf,
    directory: PathBuf,
    /// Where it is, the same after each start.
    pub url: String,
}

impl Server {
    /// A RabbitMQ.
    pub async fn rabbitmq(name: &str) -> Self {
        Self::start_new("rabbitmq", name).await
    }

    /// A RabbitMQ with its management plugin, and where that is.
    pub async fn rabbitmq_with_management(name: &str) -> (Self, String) {
        let server = Self::start_with("rabbitmq", name, &[("ROLLCALL_DEV_MANAGEMENT", "yes")]).await;
        let management = server.directory.join("management.url");
        let management = std::fs::read_to_string(management).unwrap().trim().to_owned();
        (server, management)
    }

    /// A PostgreSQL.
    pub async fn postgres(name: &str) -> Self {
        Self::start_new("postgres", name).await
    }

    async fn start_new(kind: &str, name: &str) -> Self {
        Self::start_with(kind, name, &[]).await
    }

    async fn start_with(kind: &str, name: &str, environment: &[(&str, &str)]) -> Self {
        let directory = directory().join(name);
        let script = Path::new(&variable("ROLLCALL_DEV")).join(kind);
        let mut server = Self { script, directory, url: String::new() };
        server.run_with("start", &[], environment).await;
        server.url = std::fs::read_to_string(server.directory.join("url")).unwrap().trim().to_owned();
        server
    }

    /// Starts it again, with its data, where it was.
    pub async fn start(&self) {
        self.run("start").await;
    }

    /// Stops it as an operator would.
    pub async fn stop(&self) {
        self.run("stop").await;
    }

    /// SIGKILL.
    pub async fn kill(&self) {
        self.run("kill").await;
    }

    /// SIGSTOP: its connections stay open, and nothing answers on them.
    pub async fn freeze(&self) {
        self.run("freeze").await;
    }

    /// SIGCONT.
    pub async fn thaw(&self) {
        self.run("thaw").await;
    }

    /// What `rabbitmqctl` answers to these arguments.
    pub async fn rabbitmqctl(&self, arguments: &[&str]) -> String {
        let asked = Command::new(&self.script).arg("ctl").arg(&self.directory).args(arguments).output().await.unwrap();
        assert!(asked.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&asked.stderr));
        String::from_utf8(asked.stdout).unwrap()
    }

    async fn run(&self, verb: &str) {
        self.run_with(verb, &[], &[]).await;
    }

    /// What the script says.
    async fn run_with(&self, verb: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
        let mut command = Command::new(&self.script);
        command.arg(verb).arg(&self.directory).args(arguments).envs(environment.iter().copied());
        let output = command.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} {verb} {arguments:?}: {}\n{said}", self.script.display(), output.status);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A RabbitMQ cluster of a test's own, of the nodes 1, 2 and 3. Only root may have one.
#[derive(Debug)]
pub struct Cluster(Server);

impl Cluster {
    /// One whose nodes all run.
    pub async fn start(name: &str) -> Self {
        Self(Server::start_new("rabbitmq-cluster", name).await)
    }

    /// Where it is, with the hosts of all its nodes.
    pub fn url(&self) -> &str {
        &self.0.url
    }

    /// Where a node is.
    pub fn url_of(&self, node: u8) -> String {
        let directory = self.0.directory.join(format!("node{node}"));
        std::fs::read_to_string(directory.join("url")).unwrap().trim().to_owned()
    }

    /// SIGKILL for a node.
    pub async fn kill(&self, node: u8) {
        self.0.run_with("kill", &[&node.to_string()], &[]).await;
    }

    /// Starts the nodes that do not run, with their data.
    pub async fn start_again(&self) {
        self.0.start().await;
    }

    /// Cuts a node off from the other two. Clients still reach all of them.
    pub async fn partition(&self, node: u8) {
        self.0.run_with("partition", &[&node.to_string()], &[]).await;
    }

    /// Cuts a node off from everybody.
    pub async fn isolate(&self, node: u8) {
        self.0.run_with("isolate", &[&node.to_string()], &[]).await;
    }

    /// Ends what cuts any node off.
    pub async fn heal(&self) {
        self.0.run("heal").await;
    }

    /// Whether a node has noticed that it is alone, and works for nobody.
    pub async fn is_paused(&self, node: u8) -> bool {
        self.ctl(node, &["eval", "rabbit:is_running()."]).await.trim() == "false"
    }

    /// What each node says of the cluster and of its queues, and how its log ends: for whoever has to find out what went wrong.
    pub async fn report(&self) -> String {
        let mut report = String::new();
        for node in 1..=3 {
            let seen = "{rabbit:is_running(), nodes(), rabbit_node_monitor:partitions()}.";
            let mut parts = vec![self.ctl(node, &["eval", seen]).await];
            parts.push(self.ctl(node, &["list_queues", "name", "leader", "members", "online"]).await);
            parts.push(self.end_of_log(node));
            report += &format!("node {node}:\n{}\n", parts.join("\n"));
        }
        report
    }

    /// The last lines of a node's log.
    fn end_of_log(&self, node: u8) -> String {
        const LINES: usize = 40;
        let folder = self.0.directory.join(format!("node{node}/log"));
        let mut end = String::new();
        for file in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("rollcall-")) {
                let log = std::fs::read_to_string(&file).unwrap();
                let lines: Vec<_> = log.lines().collect();
                end += &lines[lines.len().saturating_sub(LINES)..].join("\n");
            }
        }
        end
    }

    /// What a node's rabbitmqctl answers, whether or not it is what was wanted.
    async fn ctl(&self, node: u8, arguments: &[&str]) -> String {
        let node = node.to_string();
        let (script, directory) = (&self.0.script, &self.0.directory);
        let mut command = Command::new(script);
        command.arg("ctl").arg(directory).args([&node, "--quiet", "--timeout", "10"]).args(arguments);
        let asked = command.output().await.unwrap();
        let [stdout, stderr] = [asked.stdout, asked.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        stdout + &stderr
    }

    /// Which node leads a quorum queue.
    pub async fn leader(&self, queue: &str) -> u8 {
        self.0.run_with("leader", &[queue], &[]).await.trim().parse().unwrap()
    }

    /// How many of the nodes have a quorum queue, and are there.
    pub async fn online(&self, queue: &str) -> usize {
        self.0.run_with("online", &[queue], &[]).await.split_whitespace().count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody needs its data any more. What fails here is cleared away at the end of the run.
        let removed = std::process::Command::new(&self.script)
            .arg("remove")
            .arg(&self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        drop(removed);
    }
}
