//! What a sender sees on its connection, without a broker: answers, limits, time-outs, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{KEY, PATH, SECRET, Sender, UNWANTED, WANTED, hmac, no_broker, request, token, webhook};
use rollcall_ingress::Timeouts;
use rollcall_ingress::admission::Limits;
use rollcall_ingress::rejections::LastRejections;
use rollcall_ingress::server::{Server, listen};
use rollcall_ingress::webhook::Webhooks;
use rollcall_shared::config::{self, Ingress, SecretUrl, Spool};
use rollcall_shared::queue::Queue;
use rollcall_shared::signature::{Scheme, ServerKeys, Verifier};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

pub(crate) const MAX_BODY: usize = 100_000;
/// What is short for a test. Everything that a test does not wait for is long.
pub(crate) const SHORT: Duration = Duration::from_millis(300);

pub(crate) fn limits(connections: usize) -> Limits {
    Limits { connections, strangers_per_address: connections, trusted_proxies: Vec::new() }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    shutdown: CancellationToken,
    ended: JoinHandle<()>,
    pub(crate) rejections: Arc<LastRejections>,
    /// Where its spool is.
    _data: TempDir,
}

impl Running {
    pub(crate) async fn start(timeouts: Timeouts, connections: usize) -> Self {
        Self::start_with(timeouts, limits(connections), Spool::default().max_bytes).await
    }

    pub(crate) async fn start_with(timeouts: Timeouts, limits: Limits, max_spool: u64) -> Self {
        let spool = Spool { max_bytes: max_spool, ..Spool::default() };
        Self::start_on(timeouts, limits, Ingress { spool, ..Ingress::default() }).await
    }

    pub(crate) async fn start_on(timeouts: Timeouts, limits: Limits, settings: Ingress) -> Self {
        let data = tempfile::tempdir().unwrap();
        let spool = Spool { path: data.path().join("spool.db"), min_free_bytes: 0, ..settings.spool };
        let trusted_proxies = limits.trusted_proxies.clone();
        let settings = Ingress { max_body_bytes: MAX_BODY, spool, trusted_proxies, ..settings };
        let (secrets, schemes) = (vec![SECRET.into()], Scheme::ALL.into());
        let keys = ServerKeys { source: "main".into(), api_key: KEY.into(), secrets, schemes };
        let queue = config::Queue {
            url: SecretUrl::parse(&no_broker().await).unwrap(),
            prefix: "test".into(),
            ..config::Queue::default()
        };
        let publisher = Queue::open(&queue, "test").unwrap().publisher(&settings).await.unwrap();
        let (verifier, rejections) = (Verifier::new([keys]), Arc::<LastRejections>::default());
        let webhooks = Webhooks::new(&settings, verifier, publisher, rejections.clone(), timeouts.body);
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = Server::new(webhooks, timeouts, limits);
        let ended = tokio::spawn(server.run(listener, shutdown.clone(), Duration::from_secs(5)));
        Self { address, shutdown, ended, rejections, _data: data }
    }

    pub(crate) async fn patient() -> Self {
        Self::start(Timeouts::default(), 100).await
    }

    /// Why the requests that it keeps were refused and how long their bodies were, the oldest first.
    pub(crate) fn rejections(&self) -> Vec<(String, u64)> {
        let list = self.rejections.list();
        assert_eq!(list.total, list.rejections.iter().map(|rejected| rejected.count).sum::<u64>());
        list.rejections.into_iter().rev().map(|rejected| (rejected.reason.into_owned(), rejected.size)).collect()
    }

    pub(crate) async fn connect(&self) -> Sender {
        Sender::connect(self.address).await
    }
}

#[tokio::test]
async fn each_request_has_its_answer_and_the_connection_stays() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    let signed = |path, body: &str| request("POST", path, &[("Hash-Token", &token(body))], body);
    let ignored = r#"{"status":"ok","result":"ignored"}"#;
    let forbidden = r#"{"status":"error","error":"the signature is missing or wrong"}"#;
    for (what, request, status, body) in [
        ("token", webhook(UNWANTED), 200, Some(ignored)),
        ("hmac", request("POST", PATH, &[("Hash-Token", &hmac(UNWANTED))], UNWANTED), 200, Some(ignored)),
        ("Authorization alone", request("POST", PATH, &[("Authorization", &token(UNWANTED))], UNWANTED), 200, None),
        ("a slash more", signed("/webhooks/plugnmeet/", UNWANTED), 200, None),
        ("the Django path", signed("/api/course/plugnmeet/webhook/", UNWANTED), 200, None),
        ("the Django path, a slash less", signed("/api/course/plugnmeet/webhook", UNWANTED), 200, None),
        ("a query", signed("/webhooks/plugnmeet?x=1", UNWANTED), 200, None),
        ("not JSON", signed(PATH, "not json"), 400, None),
        ("no event", signed(PATH, r#"{"id":"1"}"#), 400, None),
        ("empty", signed(PATH, ""), 400, None),
        ("no signature", request("POST", PATH, &[], UNWANTED), 403, Some(forbidden)),
        ("no signature, not JSON", request("POST", PATH, &[], "not json"), 403, Some(forbidden)),
        ("another body", request("POST", PATH, &[("Hash-Token", &token(WANTED))], UNWANTED), 403, Some(forbidden)),
        ("not a signature", request("POST", PATH, &[("Hash-Token", "x")], UNWANTED), 403, Some(forbidden)),
        ("another path", signed("/webhooks", UNWANTED), 404, None),
        ("a path below", signed("/webhooks/plugnmeet/x", UNWANTED), 404, None),
        ("the admin's path", request("GET", "/metrics", &[], ""), 404, None),
        ("another path, long body", signed("/", &"x".repeat(MAX_BODY)), 404, None),
        ("GET", request("GET", PATH, &[], ""), 405, None),
        ("PUT", request("PUT", PATH, &[("Hash-Token", &token(UNWANTED))], UNWANTED), 405, None),
        ("the longest body", signed(PATH, &"x".repeat(MAX_BODY)), 400, None),
    ] {
        let response = sender.ask(request).await;
        assert_eq!(response.status, status, "{what}: {response:?}");
        assert_eq!(response.header("content-type"), Some("application/json"), "{what}");
        assert_eq!(response.header("connection"), None, "{what}");
        assert_eq!(response.header("allow"), (status == 405).then_some("post"), "{what}");
        if let Some(body) = body {
            assert_eq!(response.body, body, "{what}");
        }
    }
}

#[tokio::test]
async fn what_is_refused_is_kept_with_its_reason_and_its_size() {
    let timeouts = Timeouts { body: SHORT, linger: SHORT, ..Timeouts::default() };
    // The broker is away, and there is no room on disk.
    let ingress = Running::start_with(timeouts, limits(100), 1).await;
    let posted = |hash_token: &str, body: &str| request("POST", PATH, &[("Hash-Token", hash_token)], body);
    let chunked = |length: &str, chunk: &str| {
        let token = token(chunk);
        format!(
            "POST {PATH} HTTP/1.1\r\nHost: x\r\nHash-Token: {token}\r\nTransfer-Encoding: chunked\r\n\r\n{length}\r\n{chunk}\r\n"
        )
    };
    let cut_off = |request: String| request[..request.len() - 5].to_owned();
    let size = UNWANTED.len() as u64;
    let mut expected = Vec::new();
    for (request, status, kept) in [
        (webhook(UNWANTED), 200, None),
        (request("POST", PATH, &[], UNWANTED), 403, Some(("missing", size))),
        (posted("x", UNWANTED), 403, Some(("malformed", size))),
        (posted(&"0".repeat(64), "not json"), 403, Some(("wrong_secret", 8))),
        (posted(&token(WANTED), UNWANTED), 403, Some(("other_body", size))),
        (webhook("not json"), 400, Some(("not_json", 8))),
        (chunked("8", "not json") + "0\r\n\r\n", 400, Some(("not_json", 8))),
        (webhook(r#"{"id":"1"}"#), 400, Some(("no_event", 10))),
        (webhook(WANTED), 503, Some(("unavailable", WANTED.len() as u64))),
        // What the internet asks for is not kept; a webhook that has lost its way is.
        (request("GET", "/.env", &[], ""), 404, None),
        (request("GET", PATH, &[], ""), 405, None),
        (request("POST", "/", &[], &"x".repeat(MAX_BODY + 1)), 413, None),
        (request("POST", "/wrong", &[("Hash-Token", &token(UNWANTED))], UNWANTED), 404, Some(("wrong_path", size))),
        (request("GET", PATH, &[("Hash-Token", &token(""))], ""), 405, Some(("wrong_method", 0))),
        (webhook(&"x".repeat(MAX_BODY + 1)), 413, Some(("body_too_long", MAX_BODY as u64 + 1))),
        (cut_off(webhook(UNWANTED)), 408, Some(("body_too_slow", size))),
        (chunked("8", "not json"), 408, Some(("body_too_slow", 8))),
        (chunked("no length", "x"), 400, Some(("body_cut_off", 0))),
    ] {
        let response = ingress.connect().await.ask(&request).await;
        assert_eq!(response.status, status, "{request}: {response:?}");
        if let Some((reason, size)) = kept {
            // What comes again is kept once.
            expected.retain(|(known, _)| *known != reason);
            expected.push((reason.to_owned(), size));
        }
        assert_eq!(ingress.rejections(), expected, "{request}");
    }
}

#[tokio::test]
async fn a_sender_that_goes_away_in_its_body_is_kept_too() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    let request = webhook(UNWANTED);
    sender.send(&request[..request.len() - 5]).await;
    sender.end().await;
    assert_eq!(sender.response().await.status, 400);
    assert_eq!(ingress.rejections(), [("body_cut_off".to_owned(), UNWANTED.len() as u64)]);
}

#[tokio::test]
async fn a_body_may_come_in_pieces_and_chunks() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    let body = format!(r#"{{"event":"track_published","x":"{}"}}"#, "x".repeat(50_000));
    let whole = webhook(&body);
    for piece in whole.as_bytes().chunks(9_000) {
        sender.send(piece).await;
        sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(sender.response().await.status, 200);

    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nHash-Token: {}\r\nTransfer-Encoding: chunked\r\n\r\n",
        token(UNWANTED)
    );
    let (first, second) = UNWANTED.split_at(10);
    let chunks = format!("{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n", first.len(), second.len());
    assert_eq!(sender.ask(head + &chunks).await.status, 200);
    assert_eq!(sender.ask(webhook(UNWANTED)).await.status, 200);
}

#[tokio::test]
async fn who_asks_before_sending_is_told_to_go_on() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    let token = token(UNWANTED);
    let request = request("POST", PATH, &[("Hash-Token", &token), ("Expect", "100-continue")], UNWANTED);
    let (head, body) = request.split_at(request.len() - UNWANTED.len());
    assert_eq!(sender.ask(head).await.status, 100);
    assert_eq!(sender.ask(body).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_it_is_sent() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    let head = format!("POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1);
    let response = sender.ask(head).await;
    assert_eq!((response.status, response.header("connection")), (413, Some("close")));
    sender.closed().await;
}

#[tokio::test]
async fn who_sends_a_body_that_is_too_long_may_end_and_gets_the_answer() {
    let ingress = Running::patient().await;
    // More than the sockets' buffers hold.
    let long = "x".repeat(32 * 1024 * 1024);
    let announced = webhook(&long);
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    for request in [announced, chunked] {
        let mut sender = ingress.connect().await;
        // A connection that is reset under the sender fails here.
        assert_eq!(sender.ask(request).await.status, 413);
    }
}

#[tokio::test]
async fn a_slow_body_is_answered_and_its_connection_closed() {
    let ingress = Running::start(Timeouts { body: SHORT, linger: SHORT, ..Timeouts::default() }, 100).await;
    let mut sender = ingress.connect().await;
    let request = webhook(UNWANTED);
    sender.send(&request[..request.len() - 1]).await;
    let response = sender.response().await;
    assert_eq!((response.status, response.header("connection")), (408, Some("close")));
    sender.closed().await;
}

#[tokio::test]
async fn slow_headers_close_the_connection_however_they_drip() {
    let ingress = Running::start(Timeouts { headers: SHORT, ..Timeouts::default() }, 100).await;
    let mut first_request = ingress.connect().await;
    let mut later_request = ingress.connect().await;
    assert_eq!(later_request.ask(webhook(UNWANTED)).await.status, 200);
    for sender in [&mut first_request, &mut later_request] {
        let begun = Instant::now();
        for byte in b"POST / HTTP/1.1\r\nHost: " {
            sender.try_send(&[*byte]).await;
            sleep(SHORT / 20).await;
        }
        sender.closed().await;
        let took = begun.elapsed();
        assert!((SHORT..5 * SHORT).contains(&took), "{took:?}");
    }
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_closed() {
    let ingress = Running::start(Timeouts { first_byte: SHORT, ..Timeouts::default() }, 100).await;
    let begun = Instant::now();
    ingress.connect().await.closed().await;
    assert!(begun.elapsed() >= SHORT);
}

#[tokio::test]
async fn an_idle_connection_outlives_every_time_out_but_its_own() {
    let idle = 5 * SHORT;
    let timeouts = Timeouts {
        first_byte: SHORT,
        headers: SHORT,
        body: SHORT,
        idle,
        stranger_idle: SHORT,
        write: SHORT,
        linger: SHORT,
    };
    let ingress = Running::start(timeouts, 100).await;
    let mut sender = ingress.connect().await;
    for _ in 0..3 {
        assert_eq!(sender.ask(webhook(UNWANTED)).await.status, 200);
        assert!(sender.is_quiet_for(3 * SHORT).await);
    }
    // A request whose headers take their time is no reason to forget that the connection may be idle afterwards.
    let request = webhook(UNWANTED);
    let (begin, end) = request.split_at(20);
    sender.send(begin).await;
    sleep(SHORT / 3).await;
    assert_eq!(sender.ask(end).await.status, 200);
    let begun = Instant::now();
    sender.closed().await;
    assert!(begun.elapsed() >= 4 * SHORT);
}

#[tokio::test]
async fn a_server_has_its_idle_time_and_no_more() {
    let ingress = Running::start(Timeouts { idle: SHORT, ..Timeouts::default() }, 100).await;
    // One is answered at once, the other after a wait for the broker.
    for body in [UNWANTED, WANTED] {
        let mut sender = ingress.connect().await;
        sender.ask(webhook(body)).await;
        let begun = Instant::now();
        sender.closed().await;
        let took = begun.elapsed();
        assert!(took < 5 * SHORT, "{took:?}");
    }
}

#[tokio::test]
async fn only_who_has_signed_may_be_idle_for_long() {
    let ingress = Running::start(Timeouts { stranger_idle: SHORT, ..Timeouts::default() }, 100).await;
    let unsigned = request("POST", PATH, &[], UNWANTED);
    let mut server = ingress.connect().await;
    assert_eq!(server.ask(&unsigned).await.status, 403);
    assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
    for (request, status) in [(unsigned, 403), (request("GET", "/", &[], ""), 404)] {
        let mut stranger = ingress.connect().await;
        let begun = Instant::now();
        assert_eq!(stranger.ask(request).await.status, status);
        stranger.closed().await;
        let took = begun.elapsed();
        assert!((SHORT..5 * SHORT).contains(&took), "{took:?}");
    }
    assert_eq!(server.ask(webhook(WANTED)).await.status, 200);
    assert!(server.is_quiet_for(3 * SHORT).await, "the broker's absence is not the server's fault");
}

#[tokio::test]
async fn without_a_broker_events_are_kept_on_disk() {
    let ingress = Running::patient().await;
    let mut sender = ingress.connect().await;
    for _ in 0..3 {
        let response = sender.ask(webhook(WANTED)).await;
        assert_eq!(response.status, 200, "{response:?}");
        assert!(response.body.contains("accepted"), "{response:?}");
    }
}

#[tokio::test]
async fn without_room_on_disk_either_the_sender_is_told_when_to_come_again() {
    let ingress = Running::start_with(Timeouts::default(), limits(100), 1).await;
    let mut sender = ingress.connect().await;
    let response = sender.ask(webhook(WANTED)).await;
    assert_eq!((response.status, response.header("retry-after")), (503, Some("15")), "{response:?}");
    assert_eq!(sender.ask(webhook(UNWANTED)).await.status, 200);
}

#[tokio::test]
async fn where_servers_have_nearly_all_connections_new_ones_pass() {
    let ingress = Running::start(Timeouts::default(), 10).await;
    let mut kept = Vec::new();
    for _ in 0..9 {
        let mut server = ingress.connect().await;
        assert_eq!(server.ask(webhook(UNWANTED)).await.header("connection"), None);
        kept.push(server);
    }
    for _ in 0..3 {
        // It has the last place, until somebody comes who may be a server.
        let mut idle = ingress.connect().await;
        let mut passing = ingress.connect().await;
        let response = passing.ask(webhook(UNWANTED)).await;
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        passing.closed().await;
        idle.closed().await;
    }
    for server in &mut kept {
        assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
    }
}

#[tokio::test]
async fn draining_answers_what_is_under_way_and_closes_what_is_idle() {
    let ingress = Running::patient().await;
    let (mut idle, mut new, mut busy) = (ingress.connect().await, ingress.connect().await, ingress.connect().await);
    assert_eq!(idle.ask(webhook(UNWANTED)).await.status, 200);
    let request = webhook(WANTED);
    let (begin, end) = request.split_at(request.len() - 5);
    busy.send(begin).await;
    assert!(busy.is_quiet_for(SHORT).await);

    let begun = Instant::now();
    ingress.shutdown.cancel();
    idle.closed().await;
    new.closed().await;
    assert!(begun.elapsed() < Duration::from_secs(1), "idle connections are closed at once");
    assert_eq!(busy.ask(end).await.status, 200);
    busy.closed().await;
    ingress.ended.await.unwrap();
    assert!(tokio::net::TcpStream::connect(ingress.address).await.is_err());
}
