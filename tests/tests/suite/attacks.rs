//! Attacks from outside, with as many connections as the limit of open files allows, and how a server's webhooks fare meanwhile.

#![allow(clippy::print_stdout, reason = "how long webhooks take under attack is a figure to be read")]

use std::fmt;
use std::time::{Duration, Instant};

use chrono::Utc;
use rollcall_tests::installation::{Folder, Ingress, Installation, Process, Server, memory_kib};
use rollcall_tests::raise_file_limit;
use rollcall_tests::steady::{Answer, Steady, quantile};
use rollcall_tests::wire::{Connection, request};
use tokio::time::{interval, sleep, timeout};

/// How long an attack goes on once all attackers are there.
const ATTACKED: Duration = Duration::from_secs(30);
/// How long before that is looked at, to compare.
const QUIET: Duration = Duration::from_secs(10);
/// How long they are waited for: where no more are let in, some are never there.
const ARRIVING: Duration = Duration::from_secs(40);
/// How long it may take until the server posts.
const PATIENCE: Duration = Duration::from_mins(1);
/// The time in which a server has its answer, 99 times of 100.
const PROMISED: Duration = Duration::from_millis(100);
/// How many attackers there are: each has as many open files as the ingress, so two have more connections than it has places.
const PROCESSES: u8 = 2;
/// How many webhooks a second the server posts over connections that it keeps.
const RATE: u32 = 100;

/// An attack by each of the processes.
struct Attack {
    name: &'static str,
    connections: u32,
    addresses: u32,
}

/// What was seen in some time, of memory and connections the most.
struct Seen {
    begun: Instant,
    lasted: Duration,
    /// How webhooks over new connections were answered.
    new: Vec<Answer>,
    /// What the program had resident, in KiB.
    resident: u64,
    /// What the kernel kept for all connections of this machine, in KiB.
    kernel: u64,
    connections: f64,
}

/// How much more memory the program took under attack, in KiB.
async fn attack(attack: Attack) -> u64 {
    raise_file_limit();
    let installation = Installation::on_files().await;
    let ingress = installation.ingress().await;
    let keys = installation.keys("main").clone();
    let server = Steady::start(&keys, &[ingress.address], RATE);
    server.goes_on(200, PATIENCE).await;
    let quiet = watch(&ingress, &keys, QUIET).await;

    let attackers: Vec<_> = (0..PROCESSES).map(|number| start(&attack, number, &ingress)).collect();
    let arriving = Instant::now();
    while arriving.elapsed() < ARRIVING
        && !attackers.iter().all(|attacker| attacker.log().contains("everybody was there"))
    {
        sleep(Duration::from_millis(100)).await;
    }
    let attacked = watch(&ingress, &keys, ATTACKED).await;
    let kept = server.stop().await;
    for attacker in attackers {
        attacker.kill().await;
    }
    ingress.process.stop().await;
    println!("{attack}");
    for (when, seen) in [("before", &quiet), ("under attack", &attacked)] {
        println!("  {when}: {seen}");
        let kept = kept.between(seen.begun, seen.begun + seen.lasted);
        println!("    webhooks over kept connections: {}", Times(&kept));
        println!("    webhooks over new connections: {}", Times(&seen.new));
    }
    let kept = kept.between(attacked.begun, attacked.begun + attacked.lasted);
    for answers in [&kept, &attacked.new] {
        assert!(!answers.is_empty() && answers.iter().all(|answer| answer.accepted), "a webhook was lost");
        let p99 = quantile(answers, 0.99);
        assert!(p99 < PROMISED, "{p99:?}");
    }
    attacked.resident.saturating_sub(quiet.resident)
}

/// Watches for so long, and posts webhooks over new connections meanwhile.
async fn watch(ingress: &Ingress, keys: &Server, lasted: Duration) -> Seen {
    let begun = Instant::now();
    let mut seen = Seen { begun, lasted, new: Vec::new(), resident: 0, kernel: 0, connections: 0.0 };
    let mut ticks = interval(PROMISED);
    while begun.elapsed() < lasted {
        ticks.tick().await;
        seen.new.push(post(ingress, keys, seen.new.len()).await);
        if seen.new.len().is_multiple_of(10) {
            seen.resident = seen.resident.max(memory_kib(&ingress.process).0);
            seen.kernel = seen.kernel.max(kernel_kib());
            let connections = ingress.metric("rollcall_ingress_connections").await.unwrap_or_default();
            seen.connections = seen.connections.max(connections);
        }
    }
    seen
}

async fn post(ingress: &Ingress, keys: &Server, number: usize) -> Answer {
    let body = format!(r#"{{"event":"room_started","id":"EV_{number}","room":{{"room_id":"r"}}}}"#);
    let webhook = request(keys, &body, Utc::now().timestamp());
    let asked = Instant::now();
    let answered = timeout(Duration::from_secs(10), async {
        let mut connection = Connection::open(ingress.address).await?;
        connection.ask(&webhook).await
    });
    let accepted = matches!(answered.await, Ok(Ok(true)));
    Answer { asked, took: asked.elapsed(), accepted }
}

/// They come from addresses of their own, 127.1.0.1 and on, 127.2.0.1 and on; the server has 127.0.0.1.
fn start(attack: &Attack, number: u8, ingress: &Ingress) -> Process {
    let (target, connections) = (ingress.address.to_string(), attack.connections.to_string());
    let (from, addresses) = (format!("127.{}.0.1", number + 1), attack.addresses.to_string());
    let arguments = [attack.name, &target, "--connections", &connections, "--from", &from, "--addresses", &addresses];
    // An attacker has a processor of his own.
    Folder::new().spawn_by(&["nice", "-n", "19"], "rollcall-attacker", &arguments)
}

/// What the kernel's TCP has, in KiB: it counts in pages.
fn kernel_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").unwrap();
    let tcp = text.lines().find(|line| line.starts_with("TCP:")).unwrap();
    4 * tcp.rsplit_once(" mem ").unwrap().1.parse::<u64>().unwrap()
}

impl fmt::Display for Attack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, connections, addresses } = self;
        write!(f, "{name}: {PROCESSES} attackers, each with {connections} connections from {addresses} addresses")
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, resident, kernel, .. } = self;
        let (resident, kernel) = (resident / 1024, kernel / 1024);
        write!(f, "{connections} connections, {resident} MiB resident, {kernel} MiB in the kernel for TCP")
    }
}

struct Times<'a>(&'a [Answer]);

impl fmt::Display for Times<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepted = self.0.iter().filter(|answer| answer.accepted).count();
        let [half, most, all] = [0.5, 0.99, 1.0].map(|share| quantile(self.0, share));
        write!(f, "{accepted} of {} accepted; half in {half:.1?}, 99 % in {most:.1?}, all in {all:.1?}", self.0.len())
    }
}

#[tokio::test]
#[ignore = "takes a minute and all open files: make soak"]
async fn an_address_or_two_cannot_keep_a_server_out() {
    attack(Attack { name: "idle", connections: 14_000, addresses: 1 }).await;
}

#[tokio::test]
#[ignore = "takes a minute and all open files: make soak"]
async fn nor_can_hundreds() {
    attack(Attack { name: "idle", connections: 14_000, addresses: 250 }).await;
}

#[tokio::test]
#[ignore = "takes a minute: make soak"]
async fn peers_that_take_no_answers_cost_little() {
    let more = attack(Attack { name: "deaf", connections: 200, addresses: 10 }).await;
    assert!(more < 64 * 1024, "{more} KiB");
}

/// How much more memory it takes when 600 send a MiB each, but for the last byte, in KiB.
async fn for_bodies(name: &'static str) -> u64 {
    attack(Attack { name, connections: 300, addresses: 10 }).await
}

#[tokio::test]
#[ignore = "takes a minute: make soak"]
async fn bodies_without_a_signature_are_not_kept() {
    let more = for_bodies("unsigned-bodies").await;
    assert!(more < 64 * 1024, "{more} KiB");
}

#[tokio::test]
#[ignore = "takes a minute: make soak"]
async fn nor_are_those_that_have_lost_their_way() {
    let more = for_bodies("lost-bodies").await;
    assert!(more < 64 * 1024, "{more} KiB");
}

#[tokio::test]
#[ignore = "takes a minute: make soak"]
async fn bodies_that_may_be_signed_have_a_budget() {
    // Half of ingress.max_bodies_bytes is 32 MiB.
    let more = for_bodies("forged-bodies").await;
    assert!(more < 96 * 1024, "{more} KiB");
}
