//! A RabbitMQ cluster of three, of which one is killed, or cut off, again and again while webhooks come: nothing is lost,
//! nothing is there twice, nothing stands still for long, and nobody who posts notices.

#![allow(clippy::print_stdout, reason = "what a run came to is shown")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rollcall_shared::store::entity::live_session_interval;
use rollcall_tests::installation::Installation;
use rollcall_tests::joins::intervals;
use rollcall_tests::load::all_applied;
use rollcall_tests::services::{self, Cluster};
use rollcall_tests::steady::{Steady, quantile};
use rollcall_tests::{broker, eventually};
use sea_orm::{DatabaseConnection, EntityTrait as _, PaginatorTrait as _};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 10;
/// Events a second.
const RATE: usize = 100;
/// What every answer comes within, whatever the cluster does: PlugNMeet waits for longer.
const ANSWER: Duration = Duration::from_secs(1);
/// The seconds for which a node is away: longer than it takes one that is alone to pause (25 s), and than two heartbeats.
const AWAY: usize = 30;
/// Within this the other two have made up for it, and the three are one cluster again.
const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test]
#[ignore = "takes ten minutes, as root: make soak"]
async fn a_cluster_whose_nodes_are_killed_and_cut_off_under_load_costs_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root may give each node of a cluster a network of its own");
        return;
    }
    let cluster = Cluster::start("cluster").await;
    let mut installation = Installation::on(cluster.url(), &services::shared_postgres()).await;
    let ingresses = [installation.ingress().await, installation.ingress().await];
    let workers = [installation.worker("attendance").await, installation.worker("attendance").await];
    let addresses = ingresses.each_ref().map(|ingress| ingress.address);
    let load = Steady::start(installation.keys("main"), &addresses, RATE.try_into().unwrap());
    let queue = format!("{}.attendance", installation.prefix);
    load.goes_on(3 * RATE, LIMIT).await;
    let stop = CancellationToken::new();
    let longest_pause = tokio::spawn(longest_pause(installation.db.clone(), stop.clone()));

    for round in 1..=ROUNDS {
        whole(&cluster, &queue).await;
        let leader = cluster.leader(&queue).await;
        let fault = Fault::of_round(round);
        let begin = Instant::now();
        fault.strikes(&cluster, leader).await;
        load.goes_on(AWAY * RATE, LIMIT).await;
        fault.is_felt(&cluster, leader).await;
        let late = without_backlog(&installation, &load).await;
        fault.ends(&cluster).await;
        println!(
            "round {round}: {fault:?} of node {leader}, for {:.0?}; the last made up for after {late:.0?}",
            begin.elapsed()
        );
    }
    whole(&cluster, &queue).await;
    stop.cancel();
    println!("the longest time in which nothing was applied: {:.1?}", longest_pause.await.unwrap());

    let answers = load.stop().await;
    all_applied(&installation, &answers.accepted, LIMIT).await;
    // What was not answered 200 may have been kept all the same.
    assert!(intervals(&installation).await <= answers.all.len() as u64);
    // The tests' own client knows of one host.
    installation.broker_url = cluster.url_of(1);
    assert_eq!(broker::drained(&installation, LIMIT).await, BTreeMap::new());
    println!("each of {} accepted events was applied once", answers.accepted.len());

    let refused = answers.all.iter().filter(|answer| !answer.accepted).count();
    let times = [0.5, 0.99, 1.0].map(|share| quantile(&answers.all, share));
    println!("{} answers, p50, p99 and the worst {times:.0?}, {refused} not 200", answers.all.len());
    assert_eq!(refused, 0);
    assert!(times[2] < ANSWER);
    for worker in workers {
        worker.stop().await;
    }
}

/// What becomes of a node.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Death,
    /// From the other nodes.
    Partition,
    /// From everybody.
    Isolation,
}

impl Fault {
    fn of_round(round: usize) -> Self {
        [Self::Isolation, Self::Death, Self::Partition][round % 3]
    }

    async fn strikes(self, cluster: &Cluster, node: u8) {
        match self {
            Self::Death => cluster.kill(node).await,
            Self::Partition => cluster.partition(node).await,
            Self::Isolation => cluster.isolate(node).await,
        }
    }

    /// Waits until a node that is alone knows it: one that finds the others again before that may not find into the cluster.
    async fn is_felt(self, cluster: &Cluster, node: u8) {
        if matches!(self, Self::Death) {
            return;
        }
        eventually(LIMIT, || async {
            if cluster.is_paused(node).await { Ok(()) } else { Err(format!("node {node} has not paused")) }
        })
        .await;
    }

    async fn ends(self, cluster: &Cluster) {
        match self {
            Self::Death => cluster.start_again().await,
            Self::Partition | Self::Isolation => cluster.heal().await,
        }
    }
}

/// Waits until the queue is on all three nodes.
async fn whole(cluster: &Cluster, queue: &str) {
    let begin = Instant::now();
    while cluster.online(queue).await < 3 {
        if begin.elapsed() > LIMIT {
            panic!("{queue} is not on three nodes within {LIMIT:?}:\n{}", cluster.report().await);
        }
    }
}

/// Waits until all but what has come in the last second is applied; for how long it did.
async fn without_backlog(installation: &Installation, load: &Steady) -> Duration {
    let begin = Instant::now();
    eventually(LIMIT, || async {
        let (accepted, applied) = (load.accepted(), intervals(installation).await as usize);
        if accepted <= applied + RATE { Ok(()) } else { Err(format!("{applied} of {accepted} are applied")) }
    })
    .await;
    begin.elapsed()
}

/// The longest time until one more was applied, for as long as it is not stopped.
async fn longest_pause(db: DatabaseConnection, stop: CancellationToken) -> Duration {
    let (mut applied, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
    while !stop.is_cancelled() {
        let now = live_session_interval::Entity::find().count(&db).await.unwrap();
        longest = longest.max(since.elapsed());
        if now > applied {
            (applied, since) = (now, Instant::now());
        }
        sleep(Duration::from_millis(100)).await;
    }
    longest
}
