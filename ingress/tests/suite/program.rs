//! The program itself, without a broker: how it starts, what it shows, how it stops.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use crate::support::{self, KEY, SECRET, Sender, UNWANTED, WANTED, no_broker, request, webhook};
use rollcall_shared::telemetry::rejections::Rejections;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::{Instant, timeout};

/// How many of the requests that were refused are shown.
const KEPT: usize = 100;

struct Program {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    address: SocketAddr,
    admin: SocketAddr,
    /// Where its spool is.
    _data: TempDir,
}

impl Program {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With these settings beside those of all tests, by their names in the environment.
    async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_rollcall-ingress")), settings).await
    }

    async fn start_by(mut command: Command, settings: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = configure(&mut command, &data).await.envs(settings.iter().copied()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let started = timeout(Duration::from_secs(20), find(&mut log, "The ingress takes webhooks.")).await.unwrap();
        let started: serde_json::Value = serde_json::from_str(&started).unwrap();
        let address = |name: &str| started[name].as_str().unwrap().parse().unwrap();
        Self { address: address("address"), admin: address("admin_address"), child, log, _data: data }
    }

    async fn admin(&self, path: &str) -> support::Response {
        self.admin_as("localhost", path).await
    }

    /// What it answers to who asks for this host.
    async fn admin_as(&self, host: &str, path: &str) -> support::Response {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        Sender::connect(self.admin).await.ask(request).await
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().unwrap().try_into().unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    async fn ended(&mut self) -> ExitStatus {
        timeout(Duration::from_secs(10), self.child.wait()).await.expect("the program ends").unwrap()
    }
}

async fn configure<'a>(command: &'a mut Command, data: &TempDir) -> &'a mut Command {
    command
        .env_clear()
        .env("ROLLCALL__INGRESS__SPOOL__PATH", data.path().join("spool.db"))
        .env("ROLLCALL__INGRESS__SPOOL__MIN_FREE_BYTES", "0")
        .env("ROLLCALL__QUEUE__URL", no_broker().await)
        .env("ROLLCALL__INGRESS__ADDRESS", "127.0.0.1:0")
        .env("ROLLCALL__INGRESS__ADMIN_ADDRESS", "127.0.0.1:0")
        .env("ROLLCALL__PLUGNMEET__MAIN__URL", "http://localhost")
        .env("ROLLCALL__PLUGNMEET__MAIN__API_KEY", KEY)
        .env("ROLLCALL__PLUGNMEET__MAIN__API_SECRET", SECRET)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
}

async fn find(log: &mut Lines<BufReader<ChildStderr>>, text: &str) -> String {
    loop {
        let line = log.next_line().await.unwrap().expect("the program goes on");
        if line.contains(text) {
            return line;
        }
    }
}

#[tokio::test]
async fn the_admin_address_shows_how_it_is() {
    let mut program = Program::start().await;
    let mut sender = Sender::connect(program.address).await;
    assert_eq!(sender.ask(webhook(UNWANTED)).await.status, 200);
    assert_eq!(sender.ask(webhook(r#"{"event":"made_up_by_a_sender"}"#)).await.status, 200);
    assert_eq!(sender.ask(webhook(WANTED)).await.status, 200);
    let forged = request("POST", support::PATH, &[("Hash-Token", &"0".repeat(64))], UNWANTED);
    assert_eq!(sender.ask(forged).await.status, 403);
    let refused = timeout(Duration::from_secs(5), find(&mut program.log, "A request was refused.")).await.unwrap();
    assert!(refused.contains("not made with a configured secret"), "{refused}");
    assert!(!refused.contains(SECRET) && !refused.contains("track_published"), "{refused}");

    assert_eq!(program.admin("/healthz").await.status, 200);
    let ready = program.admin("/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.body.starts_with("ready; no connection to the broker: events are kept on disk, "), "{ready:?}");
    assert_eq!(program.admin("/").await.status, 404);
    let metrics = program.admin("/metrics").await.body;
    for line in [
        r#"rollcall_ingress_requests_total{result="ignored"} 2"#,
        r#"rollcall_ingress_requests_total{result="accepted"} 1"#,
        r#"rollcall_ingress_requests_total{result="forbidden"} 1"#,
        r#"rollcall_ingress_rejections_total{reason="wrong_secret"} 1"#,
        r#"rollcall_ingress_ignored_total{event="track_published"} 1"#,
        r#"rollcall_ingress_ignored_total{event="other"} 1"#,
        r#"rollcall_ingress_publish_seconds_bucket{le="2.5"} 1"#,
        "rollcall_ingress_connections 1",
        "# HELP rollcall_ingress_connections Connections open now.",
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn the_admin_address_answers_only_to_its_own_names() {
    let program = Program::start_with(&[("ROLLCALL__INGRESS__ADMIN_HOSTS", "ingress, rollcall.internal")]).await;
    let own = rollcall_shared::queue::host();
    let with_port = program.admin.to_string();
    for host in ["127.0.0.1", "[::1]:9090", "localhost", "ingress:9090", "Rollcall.Internal", &own, &with_port] {
        assert_eq!(program.admin_as(host, "/metrics").await.status, 200, "{host}");
    }
    for path in ["/metrics", "/healthz", "/readyz", "/rejections", "/"] {
        let response = program.admin_as("evil.example", path).await;
        assert_eq!(response.status, 421, "{path}");
        assert!(response.body.contains("ingress.admin_hosts") && !response.body.contains("evil"), "{response:?}");
    }
}

#[tokio::test]
async fn what_is_refused_again_and_again_is_one_line_with_a_count() {
    const FLOOD: u64 = 1_000;
    let mut program = Program::start().await;
    let mut sender = Sender::connect(program.address).await;
    let mut ask = async |request: String, status| assert_eq!(sender.ask(request).await.status, status);
    ask(webhook("not json"), 400).await;
    for _ in 0..FLOOD {
        ask(request("POST", support::PATH, &[], UNWANTED), 403).await;
    }
    let forged = request("POST", support::PATH, &[("Hash-Token", &"0".repeat(64))], WANTED);
    ask(forged, 403).await;
    // None of these pushes another out.
    for _ in 0..KEPT {
        ask(request("GET", "/.env", &[], ""), 404).await;
    }
    ask(request("POST", support::PATH, &[], WANTED), 403).await;

    let page = program.admin("/rejections").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("application/json")), "{page:?}");
    assert!(!page.body.contains("track_published") && !page.body.contains(".env"), "{page:?}");
    let shown: Rejections = serde_json::from_str(&page.body).unwrap();
    assert_eq!(shown.total, FLOOD + 3);
    let (missing, long) = (FLOOD + 1, WANTED.len() as u64);
    let kinds: Vec<_> = shown.rejections.iter().map(|it| (it.reason.as_ref(), it.count, it.size)).collect();
    assert_eq!(kinds, [("missing", missing, long), ("wrong_secret", 1, long), ("not_json", 1, 8)]);
    let newest = &shown.rejections[0];
    assert_eq!(newest.address, sender.address().into());
    assert!((chrono::Utc::now() - newest.at).num_seconds() < 60, "{newest:?}");
    assert!(shown.rejections[1].at < newest.at && newest.since < shown.rejections[1].at, "{shown:?}");

    let metrics = program.admin("/metrics").await.body;
    for (reason, count) in [("not_json", 1), ("missing", missing), ("wrong_secret", 1), ("wrong_path", KEPT as u64)] {
        let line = format!(r#"rollcall_ingress_rejections_total{{reason="{reason}"}} {count}"#);
        assert!(metrics.lines().any(|shown| shown == line), "{line} is not in\n{metrics}");
    }
    assert_eq!(program.admin("/").await.body, "there are /healthz, /readyz, /metrics, /rejections\n");

    program.signal(Signal::TERM);
    let mut refused = Vec::new();
    while let Some(line) = program.log.next_line().await.unwrap() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        if line["message"].as_str().is_some_and(|message| message.contains("refused")) {
            refused.push(line);
        }
    }
    assert_eq!(refused.len(), 4, "{refused:?}");
    assert_eq!((refused[3]["reason"].as_str(), refused[3]["count"].as_u64()), (Some("missing"), Some(FLOOD)));
}

#[tokio::test]
async fn so_many_kinds_of_refusals_are_kept() {
    let program = Program::start().await;
    for last in 2..KEPT + 22 {
        let mut sender = Sender::connect_from(&format!("127.0.0.{last}"), program.address).await;
        assert_eq!(sender.ask(request("POST", support::PATH, &[], UNWANTED)).await.status, 403);
    }
    let shown: Rejections = serde_json::from_str(&program.admin("/rejections").await.body).unwrap();
    assert_eq!((shown.total, shown.rejections.len()), (KEPT as u64 + 20, KEPT));
    assert!(shown.rejections.is_sorted_by(|newer, older| newer.at >= older.at));
    let addresses: Vec<_> = shown.rejections.iter().map(|rejected| rejected.address.network().to_string()).collect();
    assert_eq!((&addresses[0][..], &addresses[KEPT - 1][..]), ("127.0.0.121", "127.0.0.22"));
}

/// Where the request came from that was refused last, on the page and in the log.
async fn last_refused(program: &mut Program) -> (String, String) {
    let shown: serde_json::Value = serde_json::from_str(&program.admin("/rejections").await.body).unwrap();
    let logged = timeout(Duration::from_secs(5), find(&mut program.log, "A request was refused.")).await.unwrap();
    let logged: serde_json::Value = serde_json::from_str(&logged).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    (text(&shown["rejections"][0]["address"]), text(&logged["client"]))
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_clients_own_address_is_shown() {
    let forwarded = [("X-Forwarded-For", "9.9.9.9, 203.0.113.7")];
    let mut program = Program::start_with(&[("ROLLCALL__INGRESS__TRUSTED_PROXIES", "127.0.0.0/8, ::1")]).await;
    let mut proxy = Sender::connect(program.address).await;
    assert_eq!(proxy.ask(request("POST", support::PATH, &forwarded, UNWANTED)).await.status, 403);
    assert_eq!(last_refused(&mut program).await, ("203.0.113.7".into(), "203.0.113.7".into()));

    // Anybody can say so.
    let mut program = Program::start().await;
    let mut stranger = Sender::connect(program.address).await;
    assert_eq!(stranger.ask(request("POST", support::PATH, &forwarded, UNWANTED)).await.status, 403);
    let address = stranger.address().to_string();
    assert_eq!(last_refused(&mut program).await, (address.clone(), address));
}

#[tokio::test]
async fn an_address_of_ipv4_is_shown_as_one_where_both_are_listened_on() {
    let mut program = Program::start_with(&[("ROLLCALL__INGRESS__ADDRESS", "[::]:0")]).await;
    let mut stranger = Sender::connect((Ipv4Addr::LOCALHOST, program.address.port()).into()).await;
    assert_eq!(stranger.ask(request("POST", support::PATH, &[], UNWANTED)).await.status, 403);
    let address = stranger.address().to_string();
    assert_eq!(last_refused(&mut program).await, (address.clone(), address));
}

#[tokio::test]
async fn a_body_that_cannot_be_a_webhook_is_not_kept() {
    const SENDERS: u64 = 60;
    const LENGTH: usize = 1_000_000;
    let program = Program::start().await;
    let body = "x".repeat(LENGTH);
    let signed = [("Hash-Token", "x")];
    for (path, headers, status) in [(support::PATH, &[] as &[_], 403), ("/wrong", &signed, 404)] {
        let request = request("POST", path, headers, &body);
        let before = program.resident_bytes();
        let mut senders = Vec::new();
        for _ in 0..SENDERS {
            let mut sender = Sender::connect_and_hold_little(program.address).await;
            // When this returns, at most what the sockets' buffers hold is not read.
            sender.send(&request[..request.len() - 1]).await;
            senders.push(sender);
        }
        let grown = program.resident_bytes().saturating_sub(before);
        assert!(grown < SENDERS * LENGTH as u64 / 4, "{grown} bytes for {SENDERS} senders");
        for sender in &mut senders {
            assert_eq!(sender.ask("x").await.status, status);
        }
    }
}

#[tokio::test]
async fn sigterm_lets_what_is_under_way_end() {
    let mut program = Program::start().await;
    let (mut sender, end) = begin_webhook(&program).await;
    program.signal(Signal::TERM);
    find(&mut program.log, "drains").await;
    let ready = program.admin("/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (503, "not ready: draining\n"));
    assert_eq!(sender.ask(end).await.status, 200);
    assert!(program.ended().await.success());
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut program = Program::start().await;
    let _under_way = begin_webhook(&program).await;
    let begun = Instant::now();
    program.signal(Signal::INT);
    find(&mut program.log, "drains").await;
    program.signal(Signal::TERM);
    assert_eq!(program.ended().await.code(), Some(1));
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// A webhook that is under way, and what is still to come of it.
async fn begin_webhook(program: &Program) -> (Sender, Vec<u8>) {
    let mut sender = Sender::connect(program.address).await;
    let request = webhook(WANTED);
    let (begin, end) = request.split_at(request.len() - 5);
    sender.send(begin).await;
    assert!(sender.is_quiet_for(Duration::from_millis(200)).await);
    (sender, end.into())
}

#[tokio::test]
async fn a_wrong_setting_stops_the_start_with_its_name() {
    for (name, value, expected) in [
        ("ROLLCALL__LOG__FILTER", "info,x=loud", "log.filter"),
        ("ROLLCALL__QUEUE__URL", "http://x", "queue.url"),
        ("ROLLCALL__INGRESS__ADDRESS", "203.0.113.1:80", "203.0.113.1:80"),
        ("ROLLCALL__INGRESS__TRUSTED_PROXIES", "10.0.0.0/8,proxy", "\"proxy\" is no IP address and no network"),
        ("ROLLCALL__INGRESS__MAX_BODIES_BYTES", "4194303", "ingress.max_bodies_bytes is \"4194303\""),
        ("ROLLCALL__INGRESS__MAX_UNSIGNED_PER_ADDRESS", "0", "ingress.max_unsigned_per_address is \"0\""),
        ("ROLLCALL__INGRESS__ADMIN_ADDRESS", "203.0.113.1:80", "admin address 203.0.113.1:80"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall-ingress"));
        let data = tempfile::tempdir().unwrap();
        let mut child = configure(&mut command, &data).await.env(name, value).spawn().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(!child.wait().await.unwrap().success());
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised() {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -S -n 64 && exec \"$0\"", env!("CARGO_BIN_EXE_rollcall-ingress")]);
    let program = Program::start_by(command, &[]).await;
    let mut senders = Vec::new();
    for _ in 0..200 {
        let mut sender = Sender::connect(program.address).await;
        assert_eq!(sender.ask(webhook(UNWANTED)).await.status, 200);
        senders.push(sender);
    }
}

#[tokio::test]
async fn slow_headers_have_ten_seconds_and_idle_connections_longer() {
    let program = Program::start().await;
    let mut idle = Sender::connect(program.address).await;
    assert_eq!(idle.ask(webhook(UNWANTED)).await.status, 200);
    let mut slow = Sender::connect(program.address).await;
    let begun = Instant::now();
    slow.send("POST /webhooks/plugnmeet HTTP/1.1\r\n").await;
    slow.closed().await;
    let took = begun.elapsed();
    assert!((Duration::from_secs(10)..Duration::from_secs(12)).contains(&took), "{took:?}");
    assert!(idle.is_quiet_for(Duration::from_secs(2)).await);
    assert_eq!(idle.ask(webhook(UNWANTED)).await.status, 200);
}
