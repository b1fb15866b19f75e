//! Those who want nothing but to be in the way: connections that are many, or that take no answers.

use std::time::Duration;

use crate::http::{MAX_BODY, Running, SHORT, limits};
use crate::support::{Sender, UNWANTED, request, webhook};
use rollcall_ingress::Timeouts;
use rollcall_ingress::admission::Limits;
use rollcall_shared::config::{Ingress, Spool};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};

const MAX_CONNECTIONS: usize = 60;
const PATH: &str = crate::support::PATH;

impl Running {
    async fn with(limits: Limits) -> Self {
        Self::start_with(Timeouts::default(), limits, Spool::default().max_bytes).await
    }

    async fn connect_from(&self, address: &str) -> Sender {
        Sender::connect_from(address, self.address).await
    }

    /// A new connection's signed webhook is answered at once.
    async fn takes_webhooks_at_once(&self) {
        let begun = Instant::now();
        assert_eq!(self.connect().await.ask(webhook(UNWANTED)).await.status, 200);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }

    /// So many connections from there that say nothing; those that were closed again are among them.
    async fn crowd(&self, address: &str, count: usize) -> Vec<Sender> {
        let mut crowd = Vec::new();
        for _ in 0..count {
            crowd.push(self.connect_from(address).await);
        }
        crowd
    }
}

#[tokio::test]
async fn one_address_cannot_lock_a_server_out() {
    let ingress = Running::with(Limits { strangers_per_address: 20, ..limits(MAX_CONNECTIONS) }).await;
    let _crowd = ingress.crowd("127.0.0.2", 2 * MAX_CONNECTIONS).await;
    ingress.takes_webhooks_at_once().await;
}

#[tokio::test]
async fn nor_can_many_addresses() {
    let ingress = Running::with(limits(MAX_CONNECTIONS)).await;
    let mut crowd = Vec::new();
    for last in 2..=2 * MAX_CONNECTIONS {
        crowd.push(ingress.connect_from(&format!("127.0.0.{last}")).await);
    }
    ingress.takes_webhooks_at_once().await;
}

#[tokio::test]
async fn the_oldest_that_has_not_signed_goes_first_and_who_has_signed_stays() {
    let ingress = Running::with(limits(10)).await;
    let mut server = ingress.connect().await;
    assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
    let mut crowd = ingress.crowd("127.0.0.2", 8).await;
    let newest = crowd.split_off(1);
    assert!(crowd[0].is_quiet_for(SHORT).await, "there was a place for everybody");
    let _one_more = ingress.connect_from("127.0.0.3").await;
    crowd[0].closed().await;
    for mut stranger in newest {
        // Refused, but answered.
        assert_eq!(stranger.ask(request("POST", PATH, &[], UNWANTED)).await.status, 403);
    }
    let _crowd = ingress.crowd("127.0.0.4", 50).await;
    assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
}

#[tokio::test]
async fn an_address_has_so_many_that_have_not_signed() {
    let ingress = Running::with(Limits { strangers_per_address: 3, ..limits(100) }).await;
    let mut other = ingress.connect_from("127.0.0.3").await;
    let mut crowd = ingress.crowd("127.0.0.2", 3).await;
    assert!(crowd[0].is_quiet_for(SHORT).await);
    crowd.extend(ingress.crowd("127.0.0.2", 2).await);
    crowd[0].closed().await;
    crowd[1].closed().await;
    for stranger in crowd[2..].iter_mut().chain([&mut other]) {
        assert_eq!(stranger.ask(request("POST", PATH, &[], UNWANTED)).await.status, 403);
    }
    // Those that sign make room for others of their address.
    for _ in 0..2 {
        let mut servers = ingress.crowd("127.0.0.5", 3).await;
        for server in &mut servers {
            assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
        }
        let _more = ingress.crowd("127.0.0.5", 3).await;
        for server in &mut servers {
            assert_eq!(server.ask(webhook(UNWANTED)).await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_trusted_proxy_has_as_many_as_it_likes() {
    let trusted_proxies = vec!["127.0.0.2/31".parse().unwrap()];
    let ingress = Running::with(Limits { strangers_per_address: 3, trusted_proxies, ..limits(100) }).await;
    for proxied in &mut ingress.crowd("127.0.0.2", 20).await {
        assert_eq!(proxied.ask(request("POST", PATH, &[], UNWANTED)).await.status, 403);
    }
}

#[tokio::test]
async fn a_servers_next_connection_has_its_time_however_many_come_after_it() {
    let ingress = Running::with(limits(20)).await;
    assert_eq!(ingress.connect_from("127.0.0.9").await.ask(webhook(UNWANTED)).await.status, 200);
    let mut slow = ingress.connect_from("127.0.0.9").await;
    let (request, mut stranger) = (webhook(UNWANTED), ingress.connect().await);
    slow.send(&request[..20]).await;
    let _crowd = ingress.crowd("127.0.0.2", 100).await;
    stranger.closed().await;
    assert_eq!(slow.ask(&request[20..]).await.status, 200);
}

#[tokio::test]
async fn who_pipelines_and_reads_nothing_is_soon_gone() {
    let ingress = Running::start(Timeouts { write: SHORT, ..Timeouts::default() }, 100).await;
    for request in [request("POST", PATH, &[], UNWANTED), webhook(UNWANTED)] {
        let mut deaf = Sender::connect_and_hold_little(ingress.address).await;
        let many = request.repeat(20_000);
        // When the ingress has closed, writing fails.
        let sent = timeout(Duration::from_secs(10), deaf.try_send(many.as_bytes())).await;
        assert!(sent.is_ok(), "it is still connected");
    }
    let refused = ingress.rejections.list().total;
    assert!((1..1_000).contains(&refused), "{refused} answers were made for somebody who takes none");
}

#[tokio::test]
async fn who_reads_slowly_is_answered_to_the_end() {
    const COUNT: usize = 600;
    const STATUS: &[u8] = b"HTTP/1.1 200";
    let ingress = Running::start(Timeouts { write: 2 * SHORT, ..Timeouts::default() }, 100).await;
    let (mut read, mut write) = Sender::connect_and_hold_little(ingress.address).await.into_split();
    let (requests, mut answers) = (webhook(UNWANTED).repeat(COUNT), Vec::new());
    let reading = async {
        while answers.windows(STATUS.len()).filter(|bytes| *bytes == STATUS).count() < COUNT {
            sleep(SHORT / 10).await;
            assert_ne!(read.read_buf(&mut answers).await.unwrap(), 0, "it was closed");
        }
    };
    let (sent, ()) = tokio::join!(write.write_all(requests.as_bytes()), reading);
    sent.unwrap();
}

/// A body that is too long to come in one piece, as the server would sign it.
fn long_webhook() -> String {
    webhook(&format!(r#"{{"event":"track_published","x":"{}"}}"#, "x".repeat(MAX_BODY - 100)))
}

/// Half of one that nobody has signed.
fn half_a_forged_one() -> String {
    let forged = request("POST", PATH, &[("Hash-Token", "x")], &"x".repeat(MAX_BODY));
    forged[..forged.len() / 2].to_owned()
}

/// An ingress that has memory for two long bodies of strangers.
async fn with_memory_for_two(timeouts: Timeouts) -> Running {
    let settings = Ingress { max_bodies_bytes: 4 * MAX_BODY, ..Ingress::default() };
    Running::start_on(timeouts, limits(100), settings).await
}

#[tokio::test]
async fn long_bodies_wait_for_memory_but_not_those_of_servers() {
    let ingress = with_memory_for_two(Timeouts::default()).await;
    let mut strangers = ingress.crowd("127.0.0.2", 2).await;
    for stranger in &mut strangers {
        stranger.send(half_a_forged_one()).await;
        assert!(stranger.is_quiet_for(SHORT).await);
    }
    let mut waiting = ingress.connect().await;
    waiting.send(long_webhook()).await;
    assert!(waiting.is_quiet_for(SHORT).await);
    // What comes in one piece needs none.
    assert_eq!(ingress.connect_from("127.0.0.3").await.ask(webhook(UNWANTED)).await.status, 200);
    // It is told from strangers by what has come from its address before.
    assert_eq!(ingress.connect_from("127.0.0.3").await.ask(long_webhook()).await.status, 200);
    assert!(waiting.is_quiet_for(SHORT).await);
    drop(strangers);
    assert_eq!(waiting.response().await.status, 200);
    for _ in 0..10 {
        assert_eq!(waiting.ask(long_webhook()).await.status, 200);
    }
}

#[tokio::test]
async fn who_waits_too_long_for_memory_is_told_to_come_again() {
    let ingress = with_memory_for_two(Timeouts { body: 2 * SHORT, ..Timeouts::default() }).await;
    let mut strangers = ingress.crowd("127.0.0.2", 8).await;
    for stranger in &mut strangers {
        stranger.send(half_a_forged_one()).await;
    }
    // Whoever has memory is too slow with the rest; of those who wait for it some wait too long.
    let mut statuses = Vec::new();
    for stranger in &mut strangers {
        let response = stranger.response().await;
        assert_eq!(response.header("retry-after"), (response.status == 503).then_some("15"), "{response:?}");
        assert_eq!(response.header("connection"), Some("close"), "{response:?}");
        statuses.push(response.status);
    }
    assert!(statuses.contains(&408) && statuses.contains(&503), "{statuses:?}");
    // Nothing of it is lost.
    for _ in 0..4 {
        assert_eq!(ingress.connect().await.ask(long_webhook()).await.status, 200);
    }
}
