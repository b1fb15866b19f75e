//! A worker's side: deliveries out, each settled once its effect is safe.
//!
//! Two lanes. The worker's own queue comes many at a time. What comes back unacknowledged (its channel died with it, for
//! whatever reason) is moved to the suspect queue before any rule sees it, and comes from there one at a time: what kills
//! processes then dies alone, and its neighbours do not share its count.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{error, info, warn};

use super::QueueError;
use super::acks::Acks;
use super::broker::{Backoff, Broker};
use super::message::{self, DeadKind, Message};
use super::topology::Topology;
use crate::config::{self, RetrySchedule};
use crate::event::WorkerName;

/// How often to look whether the channel for moves is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long a connection may take to close that is not wanted any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait before trying again to settle a delivery whose connection is still up.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// One of the two ways deliveries come, see the module.
#[derive(Debug)]
pub struct Lane(mpsc::Receiver<Delivery>);

/// A worker's deliveries, for as long as it wants them: lost connections come back by themselves.
#[derive(Debug)]
pub struct Consumer {
    /// The worker's own queue.
    pub main: Lane,
    /// What came back once already, one at a time.
    pub suspects: Lane,
    /// Ends once the consumer was told to stop, every delivery is settled, and the connection is closed.
    pub closed: JoinHandle<()>,
}

impl Consumer {
    /// Begins to take deliveries for `worker`, at most `prefetch` of them unsettled at once, until `stop` is cancelled:
    /// then the lanes end after what has been delivered so far.
    ///
    /// # Errors
    /// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
    pub async fn start(
        settings: &config::Queue,
        worker: WorkerName,
        retry: &RetrySchedule,
        prefetch: u16,
        stop: CancellationToken,
    ) -> Result<Self, QueueError> {
        let broker = Broker::new(settings, &format!("rollcall-worker {worker}"))?;
        let (main_sender, main) = mpsc::channel(prefetch.into());
        let (suspect_sender, suspects) = mpsc::channel(1);
        let lanes = Lanes { main: main_sender, suspects: suspect_sender };
        let intake = Intake {
            topology: Topology::new(broker.prefix()),
            broker,
            worker,
            delays: retry.delays().into(),
            prefetch,
            lanes,
            stop,
        };
        let first = match Session::open(&intake).await {
            Ok(session) => Some(session),
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                warn!(%error, "the broker is not there yet; will try again");
                None
            }
        };
        let closed = tokio::spawn(intake.run(first));
        Ok(Self { main: Lane(main), suspects: Lane(suspects), closed })
    }
}

impl Lane {
    /// The next deliveries: waits for the first, then up to `wait` for more, until there are `most`.
    ///
    /// None when the consumer was told to stop and everything delivered has been given out.
    pub async fn next_batch(&mut self, most: usize, wait: Duration) -> Option<Vec<Delivery>> {
        let mut batch = vec![self.0.recv().await?];
        let deadline = Instant::now() + wait;
        while batch.len() < most {
            match timeout_at(deadline, self.0.recv()).await {
                Ok(Some(delivery)) => batch.push(delivery),
                Ok(None) | Err(_) => break,
            }
        }
        Some(batch)
    }
}

/// A message that is ours until it is settled. One that is dropped unsettled comes back when its channel ends.
#[derive(Debug)]
pub struct Delivery {
    /// What was delivered.
    pub message: Message,
    tag: u64,
    acks: Arc<Acks>,
    moves: Arc<Moves>,
    /// Tells the session when the last of its deliveries is gone.
    _unsettled: TaskTrackerToken,
}

/// Where a delivery can be moved to.
#[derive(Debug)]
struct Moves {
    channel: Channel,
    topology: Topology,
    worker: WorkerName,
    delays: Arc<[Duration]>,
    host: String,
    deliveries: TaskTracker,
}

/// Each settles the delivery, at once or in the background, or sees that its channel has ended, so that it comes back: either way nothing is lost.
impl Delivery {
    /// Its effect is committed.
    pub async fn ack(self) {
        Self::ack_all(vec![self]).await;
    }

    /// Their effect is committed.
    pub async fn ack_all(mut deliveries: Vec<Self>) {
        // Where a connection was lost in between, not all of them are of one channel.
        while let Some(acks) = deliveries.first().map(|delivery| delivery.acks.clone()) {
            let (of_channel, others) =
                deliveries.into_iter().partition::<Vec<_>, _>(|delivery| Arc::ptr_eq(&delivery.acks, &acks));
            let tags: BTreeSet<_> = of_channel.iter().map(|delivery| delivery.tag).collect();
            if let Err(error) = acks.ack(&tags).await {
                info!(%error, deliveries = tags.len(), "the channel of what is done was gone: it will come again");
            }
            deliveries = others;
        }
    }

    /// It failed, and comes back after `delay`, one of the worker's schedule.
    pub fn retry(self, delay: Duration, error: &str) {
        let queue = self.moves.topology.retry(self.moves.worker, delay);
        let properties = self.message.failed(error).properties();
        self.move_to(queue, properties);
    }

    /// It did not fail, and comes back after about `delay`: the schedule's first that is as long, or its longest.
    pub fn postpone(self, delay: Duration) {
        let delays = &self.moves.delays;
        let delay = delays.iter().find(|known| **known >= delay).or(delays.last());
        let queue = match delay {
            Some(delay) => self.moves.topology.retry(self.moves.worker, *delay),
            None => self.moves.topology.queue(self.moves.worker),
        };
        let properties = self.message.properties();
        self.move_to(queue, properties);
    }

    /// It was not tried: back to the end of the worker's queue, as if it had never been delivered.
    pub fn hand_back(self) {
        let queue = self.moves.topology.queue(self.moves.worker);
        let properties = self.message.properties();
        self.move_to(queue, properties);
    }

    /// It is dead: to where an operator finds it, with why, when, how often and where.
    pub fn bury(self, kind: DeadKind, error: &str) {
        let queue = self.moves.topology.dead(self.moves.worker);
        let properties = self.message.failed(error).dead_properties(kind, &self.moves.host);
        self.move_to(queue, properties);
    }

    /// In the background, since a broker that is short of memory takes its time: what comes after need not wait. The
    /// session waits for it before it closes.
    fn move_to(self, queue: String, properties: BasicProperties) {
        tokio::spawn(self.moved_to(queue, properties));
    }

    /// Acknowledged only once the broker has confirmed it in the other queue.
    async fn moved_to(self, queue: String, properties: BasicProperties) {
        while self.acks.is_open() {
            match self.moves.publish(&queue, &self.message.body, properties.clone()).await {
                Ok(()) => return self.ack().await,
                Err(reason) => {
                    warn!(reason, queue, message_id = %self.message.id, "a delivery could not be moved; will try again");
                    sleep(SETTLE_AGAIN).await;
                }
            }
        }
    }
}

impl Moves {
    async fn publish(&self, queue: &str, body: &[u8], properties: BasicProperties) -> Result<(), String> {
        let moving = async {
            let exchange = self.topology.moves();
            let options = BasicPublishOptions::default();
            self.channel.basic_publish(exchange.into(), queue.into(), options, body, properties).await?.await
        };
        // For as long as the connection lasts: publishing again while the first is under way makes two of one.
        match moving.await {
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(_) => Err("the broker refused it".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Returns when nothing can be moved any more.
    async fn lost(&self) {
        while self.channel.status().connected() {
            sleep(LOOK_AGAIN).await;
        }
    }
}

#[derive(Debug)]
struct Lanes {
    main: mpsc::Sender<Delivery>,
    suspects: mpsc::Sender<Delivery>,
}

/// What keeps the deliveries coming.
struct Intake {
    broker: Broker,
    topology: Topology,
    worker: WorkerName,
    delays: Arc<[Duration]>,
    prefetch: u16,
    lanes: Lanes,
    stop: CancellationToken,
}

/// One connection's life.
struct Session {
    connection: Connection,
    /// Of its own: a broker that is short of memory blocks a connection that publishes, acknowledgements and all.
    moving: Connection,
    main: Subscription,
    suspects: Subscription,
    moves: Arc<Moves>,
}

/// One queue, consumed on a channel of its own.
struct Subscription {
    channel: Channel,
    consumer: lapin::Consumer,
    acks: Arc<Acks>,
}

impl Intake {
    async fn run(self, first: Option<Session>) {
        let mut session = first;
        let mut backoff = Backoff::new();
        while !self.stop.is_cancelled() {
            if let Some(mut open) = session.take() {
                info!(worker = %self.worker, "taking deliveries");
                match open.deliver(&self.lanes, &self.stop).await {
                    Ok(()) => {
                        drop(self.lanes);
                        return open.close().await;
                    }
                    Err(reason) => warn!(reason, "the connection to the broker was lost"),
                }
                // What is not settled comes back, also where only a part of the session has ended.
                open.abandon().await;
                backoff = Backoff::new();
            }
            if self.stop.run_until_cancelled(sleep(backoff.next())).await.is_none() {
                return;
            }
            match Session::open(&self).await {
                Ok(opened) => session = Some(opened),
                Err(error) if error.is_final() => error!(%error, "no deliveries can be taken; will try again"),
                Err(error) => warn!(%error, "the broker is not there; will try again"),
            }
        }
    }
}

impl Session {
    async fn open(intake: &Intake) -> Result<Self, QueueError> {
        let Intake { broker, topology, worker, .. } = intake;
        let connection = broker.connect().await?;
        topology.declare(broker, &connection).await?;
        topology.declare_retries(broker, &connection, *worker, &intake.delays).await?;
        let moving = broker.connect().await?;
        let moves = Moves {
            channel: broker.confirming_channel(&moving).await?,
            topology: topology.clone(),
            worker: *worker,
            delays: intake.delays.clone(),
            host: host(),
            deliveries: TaskTracker::new(),
        };
        let main = Subscription::open(broker, &connection, &topology.queue(*worker), intake.prefetch).await?;
        let suspects = Subscription::open(broker, &connection, &topology.suspect(*worker), 1).await?;
        Ok(Self { connection, moving, main, suspects, moves: Arc::new(moves) })
    }

    /// Hands deliveries to the lanes until told to stop.
    ///
    /// # Errors
    /// What ended the session instead.
    async fn deliver(&mut self, lanes: &Lanes, stop: &CancellationToken) -> Result<(), String> {
        let moves = self.moves.clone();
        let mut stopping = false;
        let mut open = (true, true);
        while open != (false, false) {
            tokio::select! {
                () = moves.lost() => return Err("the channel for moving messages has ended".to_owned()),
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.main.cancel().await?;
                    self.suspects.cancel().await?;
                }
                next = self.main.consumer.next(), if open.0 => match delivered(next, stopping)? {
                    Some((delivery, came_back)) => {
                        let delivery = self.main.take(delivery, &moves).await;
                        if came_back {
                            set_aside(delivery);
                        } else {
                            give(&lanes.main, delivery).await;
                        }
                    }
                    None => open.0 = false,
                },
                next = self.suspects.consumer.next(), if open.1 => match delivered(next, stopping)? {
                    Some((delivery, _)) => give(&lanes.suspects, self.suspects.take(delivery, &moves).await).await,
                    None => open.1 = false,
                },
            }
        }
        Ok(())
    }
}

impl Session {
    /// Waits until every delivery is settled, and until the broker knows.
    async fn close(self) {
        self.moves.deliveries.close();
        self.moves.deliveries.wait().await;
        for connection in [self.connection, self.moving] {
            if let Err(error) = connection.close(200, "the worker stops".into()).await {
                info!(%error, "the connection to the broker did not close well");
            }
        }
    }

    /// Closes what is left of a session that has lost a part of itself.
    async fn abandon(self) {
        for connection in [self.connection, self.moving] {
            // It is gone already, or does not matter any more.
            let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "starting anew".into())).await;
        }
    }
}

impl Subscription {
    async fn open(broker: &Broker, connection: &Connection, queue: &str, prefetch: u16) -> Result<Self, QueueError> {
        let name = format!("queue {queue}");
        let failed = |error: lapin::Error| broker.error(&name, &error);
        let channel = connection.create_channel().await.map_err(failed)?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await.map_err(failed)?;
        let acks = Arc::new(Acks::on(channel.clone()));
        Ok(Self { channel, consumer, acks })
    }

    async fn take(&self, delivery: lapin::message::Delivery, moves: &Arc<Moves>) -> Delivery {
        self.acks.delivered(delivery.delivery_tag).await;
        Delivery {
            message: Message::read(&delivery.properties, delivery.data),
            tag: delivery.delivery_tag,
            acks: self.acks.clone(),
            moves: moves.clone(),
            _unsettled: moves.deliveries.token(),
        }
    }

    async fn cancel(&self) -> Result<(), String> {
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await;
        cancelled.map_err(|error| error.to_string())
    }
}

/// What a consumer's stream gave: a delivery, and whether it has come back; or the stream's end, which is one only once
/// the consumer was cancelled by us.
fn delivered(
    next: Option<lapin::Result<lapin::message::Delivery>>,
    stopping: bool,
) -> Result<Option<(lapin::message::Delivery, bool)>, String> {
    match next {
        Some(Ok(delivery)) => {
            let came_back = delivery.redelivered || message::delivery_count(&delivery.properties) > 0;
            Ok(Some((delivery, came_back)))
        }
        None if stopping => Ok(None),
        None => Err("the broker cancelled the consumer: was its queue deleted?".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
    }
}

/// A worker that has gone does not take it: it comes back when the channel ends.
async fn give(lane: &mpsc::Sender<Delivery>, delivery: Delivery) {
    drop(lane.send(delivery).await);
}

fn set_aside(delivery: Delivery) {
    info!(message_id = %delivery.message.id, "a delivery came back unacknowledged: it is taken alone from now on");
    let queue = delivery.moves.topology.suspect(delivery.moves.worker);
    let properties = delivery.message.properties();
    delivery.move_to(queue, properties);
}

/// Which machine a dead letter died on.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}
