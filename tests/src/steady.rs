//! A steady load: as many webhooks a second, however they are answered. Each is of a room with a connection of its own, which
//! posts once a second: a slow answer keeps nobody else from posting.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use tokio::task::JoinSet;
use tokio::time::{self, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::eventually;
use crate::installation::Server;
use crate::joins::CapturedJoin;
use crate::wire::{Connection, request};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How one webhook was answered.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// When it was sent.
    pub asked: Instant,
    /// How long the answer took, or how long it was waited for.
    pub took: Duration,
    /// Whether it was 200.
    pub accepted: bool,
}

/// How all were answered.
#[derive(Debug, Default)]
pub struct Answers {
    /// In no order.
    pub all: Vec<Answer>,
    /// Which connections' joins were answered 200.
    pub accepted: BTreeSet<String>,
}

/// Joins of ever new people, posted until it is stopped.
pub struct Steady {
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
    rooms: JoinSet<Answers>,
}

/// One room, and who posts for it.
struct Room {
    name: String,
    keys: Server,
    ingress: SocketAddr,
    join: CapturedJoin,
    accepted: Arc<AtomicUsize>,
}

impl Steady {
    /// Begins to post `rate` webhooks a second, signed with these keys, in turn to these ingresses.
    pub fn start(keys: &Server, ingresses: &[SocketAddr], rate: u32) -> Self {
        let (stop, accepted) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let join = CapturedJoin::load();
        let mut rooms = JoinSet::new();
        let begin = time::Instant::now();
        for (number, ingress) in (0..rate).zip(ingresses.iter().cycle()) {
            let (name, accepted) = (format!("room-{number}"), accepted.clone());
            let room = Room { name, keys: keys.clone(), ingress: *ingress, join: join.clone(), accepted };
            rooms.spawn(room.post(begin + Duration::from_secs(1) * number / rate, stop.clone()));
        }
        Self { stop, accepted, rooms }
    }

    /// How many were accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until so many more were accepted.
    pub async fn goes_on(&self, count: usize, limit: Duration) {
        let target = self.accepted() + count;
        eventually(limit, || async {
            let accepted = self.accepted();
            if accepted >= target { Ok(()) } else { Err(format!("{accepted} of {target} were accepted")) }
        })
        .await;
    }

    /// Stops posting, and waits for the answers.
    pub async fn stop(self) -> Answers {
        self.stop.cancel();
        let mut answers = Answers::default();
        for room in self.rooms.join_all().await {
            answers.all.extend(room.all);
            answers.accepted.extend(room.accepted);
        }
        answers
    }
}

impl Room {
    async fn post(self, begin: time::Instant, stop: CancellationToken) -> Answers {
        let mut seconds = interval_at(begin, Duration::from_secs(1));
        let mut answers = Answers::default();
        let mut connection = None;
        for number in 0.. {
            if stop.run_until_cancelled(seconds.tick()).await.is_none() {
                break;
            }
            let person = format!("{}-{number}", self.name);
            let request = request(&self.keys, &self.join.of(&self.name, &person), Utc::now().timestamp());
            let asked = Instant::now();
            let answered = timeout(PATIENCE, ask(&mut connection, self.ingress, &request)).await;
            let accepted = matches!(answered, Ok(Ok(true)));
            answers.all.push(Answer { asked, took: asked.elapsed(), accepted });
            if accepted {
                answers.accepted.insert(CapturedJoin::sid(&person));
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            if !matches!(answered, Ok(Ok(_))) {
                connection = None;
            }
        }
        answers
    }
}

async fn ask(connection: &mut Option<Connection>, ingress: SocketAddr, request: &[u8]) -> anyhow::Result<bool> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::open(ingress).await?),
    };
    connection.ask(request).await
}

impl Answers {
    /// Those that were asked for in this time.
    pub fn between(&self, begin: Instant, end: Instant) -> Vec<Answer> {
        self.all.iter().copied().filter(|answer| (begin..end).contains(&answer.asked)).collect()
    }
}

/// The time within which such a share of them came.
pub fn quantile(answers: &[Answer], share: f64) -> Duration {
    let mut took: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    took.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}
