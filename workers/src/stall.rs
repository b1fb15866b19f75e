//! Finds out when a worker stands still: it could work, there are events for it, and it has settled none for longer than its
//! longest job may take. That is a fault of Rollcall's own, which nobody would see before the class is over.
//!
//! What was settled, also by handing it back, is counted [in hand](InHand), what waits is asked of the queue. It is told to the [obstacles](Obstacles),
//! and so by `/readyz` and `rollcall status`, and to the log.

use std::time::Duration;

use rollcall_shared::config::Settings;
use rollcall_shared::event::AnyWorker;
use rollcall_shared::queue::{Depths, InHand, Queue};
use rollcall_shared::telemetry::obstacles::Obstacles;
use tokio::time::{Instant, timeout};
use tracing::{debug, error};

/// What a worker is told that stands still.
pub(crate) const STANDS_STILL: &str = "it stands still: there are events for it, and it has settled none for longer than its \
                                       longest job may take; end it, if need be by force, start it again, and report its log";
/// How often to look within the patience: on a broker, each look is a connection.
const LOOKS: u32 = 4;
/// How long the queue may take to say how much waits.
const LIMIT: Duration = Duration::from_secs(5);

/// Looks whether a worker stands still.
pub(crate) struct Stall {
    worker: AnyWorker,
    queue: Queue,
    settings: Settings,
    in_hand: InHand,
    obstacles: Obstacles,
    /// How long none may be settled while there is one to settle.
    patience: Duration,
    settled: u64,
    /// When there were first events for it, of those looks since the last was settled.
    since: Option<Instant>,
    next_look: Instant,
}

impl Stall {
    /// Of a worker that starts, whose longest job takes `patience`.
    pub(crate) fn of(
        worker: AnyWorker,
        queue: Queue,
        settings: Settings,
        in_hand: InHand,
        obstacles: Obstacles,
        patience: Duration,
    ) -> Self {
        let next_look = Instant::now() + patience / LOOKS;
        Self { worker, queue, settings, in_hand, obstacles, patience, settled: 0, since: None, next_look }
    }

    /// Looks, if it is time to: to be called every few seconds.
    pub(crate) async fn look(&mut self, is_paused: bool) {
        let settled = self.in_hand.settled();
        // What stands in its way is told already.
        if settled != self.settled || is_paused || self.obstacles.is_any_but(STANDS_STILL) {
            self.settled = settled;
            self.goes_on();
        }
        if Instant::now() < self.next_look {
            return;
        }
        self.next_look = Instant::now() + self.patience / LOOKS;
        if self.in_hand.unsettled() > 0 {
            return self.has_not_worked();
        }
        match timeout(LIMIT, self.queue.depths(&self.settings)).await {
            Ok(Ok(depths)) if self.is_waited_for(&depths) => self.has_not_worked(),
            Ok(Ok(_)) => self.goes_on(),
            Ok(Err(error)) => debug!(worker = %self.worker, %error, "how much waits cannot be seen; will try again"),
            Err(_) => debug!(worker = %self.worker, "how much waits was not answered in time; will try again"),
        }
    }

    fn is_waited_for(&self, depths: &Depths) -> bool {
        depths.workers.iter().any(|depth| match self.worker {
            AnyWorker::DeadLetters => depth.dead > 0,
            AnyWorker::Events(worker) => depth.worker == worker && depth.waiting + depth.suspects > 0,
        })
    }

    fn has_not_worked(&mut self) {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.patience && self.obstacles.add(STANDS_STILL) {
            let (in_hand, seconds) = (self.in_hand.unsettled(), since.elapsed().as_secs());
            error!(worker = %self.worker, in_hand, seconds, "{STANDS_STILL}");
        }
    }

    fn goes_on(&mut self) {
        self.since = None;
        self.obstacles.remove(STANDS_STILL);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use rollcall_shared::event::WorkerName;
    use rollcall_shared::queue::{Message, Subscription};
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    /// A worker of a queue in a file of its own.
    pub(crate) struct Watched {
        queue: Queue,
        settings: Settings,
        in_hand: InHand,
        obstacles: Obstacles,
        pub(crate) stall: Stall,
    }

    impl Watched {
        pub(crate) fn new(worker: AnyWorker, folder: &Path) -> Self {
            let file = folder.join("rollcall.toml");
            let url = format!("sqlite://{}", folder.join("queue.db").display());
            std::fs::write(&file, format!("[queue]\nurl = {url:?}\n")).unwrap();
            let settings = Settings::load(Some(&file)).unwrap();
            let queue = Queue::open(&settings.queue, "test").unwrap();
            let (in_hand, obstacles) = (InHand::default(), Obstacles::default());
            let stall =
                Stall::of(worker, queue.clone(), settings.clone(), in_hand.clone(), obstacles.clone(), PATIENCE);
            Self { queue, settings, in_hand, obstacles, stall }
        }

        async fn send(&self, worker: WorkerName) {
            let message = Message::new("main", "participant_joined", Bytes::from_static(b"{}"));
            self.queue.sender().await.unwrap().send(worker, message, LIMIT).await.unwrap();
        }

        fn subscription(&self, worker: WorkerName) -> Subscription {
            Subscription {
                worker,
                retry: self.settings.retry(worker).clone(),
                prefetch: 8,
                in_hand: self.in_hand.clone(),
                obstacles: self.obstacles.clone(),
                stop: CancellationToken::new(),
            }
        }

        /// Looks until it is told that it stands still, or is not any more.
        async fn until(&mut self, stands_still: bool) {
            let looks = async {
                while self.obstacles.check().is_err() != stands_still {
                    self.stall.look(false).await;
                    sleep(PATIENCE / 10).await;
                }
            };
            timeout(Duration::from_secs(30), looks).await.expect("it is not told");
        }

        /// Whether it is told within much longer than the patience.
        async fn is_told(&mut self, is_paused: bool) -> bool {
            let begin = Instant::now();
            while begin.elapsed() < PATIENCE * 5 {
                self.stall.look(is_paused).await;
                sleep(PATIENCE / 10).await;
            }
            self.obstacles.check().is_err_and(|obstacles| obstacles.contains(STANDS_STILL))
        }
    }

    #[tokio::test]
    async fn a_worker_that_holds_what_it_took_stands_still_until_it_settles() {
        let folder = tempfile::tempdir().unwrap();
        let mut watched = Watched::new(AnyWorker::Events(WorkerName::Attendance), folder.path());
        watched.send(WorkerName::Attendance).await;
        let mut consumer = watched.queue.consumer(watched.subscription(WorkerName::Attendance)).await.unwrap();
        let held = consumer.main.next_batch(1, Duration::ZERO).await.unwrap();
        watched.until(true).await;
        for delivery in held {
            delivery.ack().await;
        }
        watched.until(false).await;
        assert!(!watched.is_told(false).await, "nothing waits any more");
    }

    #[tokio::test]
    async fn a_worker_that_takes_nothing_stands_still_unless_it_is_known_why() {
        let folder = tempfile::tempdir().unwrap();
        let mut watched = Watched::new(AnyWorker::Events(WorkerName::Attendance), folder.path());
        watched.send(WorkerName::Rooms).await;
        assert!(!watched.is_told(false).await, "that is somebody else's");
        watched.send(WorkerName::Attendance).await;
        assert!(!watched.is_told(true).await, "it is paused");
        watched.obstacles.add("the database is away");
        assert!(!watched.is_told(false).await, "it has no database");
        watched.obstacles.remove("the database is away");
        watched.until(true).await;
    }
}
