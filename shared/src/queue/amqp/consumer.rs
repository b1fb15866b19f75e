//! Deliveries over AMQP: two connections, a channel for each lane, and a new session whenever any of it is lost.
//!
//! The worker's own queue is consumed. What comes back from it is moved to the suspect queue before any rule sees it, and
//! the suspect queue is not consumed: a suspect is got when it is asked for, so that none is ours while others are at work
//! whose death would count against it.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::acks::Acks;
use super::broker::{Backoff, Broker, DONE};
use super::confirms::{CLOSE_TIMEOUT, Confirms};
use super::properties;
use super::topology::{Retries, Topology};
use crate::queue::delivery::{
    Consumer, Delivery, Destination, Lane, LaneSource, Origin, Subscription, SuspectSource, Suspects,
};
use crate::queue::{InHand, Message, PublishError, QueueError};
use crate::telemetry::obstacles::Obstacles;

/// How often to look whether the channels are still there, where nothing else tells.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long the broker may take to have everything ready for a session, and to answer in one.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How often to look whether suspects wait.
const LOOK_FOR_SUSPECTS: Duration = Duration::from_secs(1);
/// How long to wait before trying again to settle a delivery whose connection is still up.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// What a worker is told that has no session.
const NO_BROKER: &str = "no connection to the broker";
/// What a worker is told whom the broker has let in before.
const REFUSED: &str = "the broker refuses us; the log says why";
/// What a worker is told whose broker is short of memory or of disk.
const BLOCKED: &str = "the broker takes no messages: what is to be tried again, or is dead, waits for that";
/// What a worker is told that cannot move an event.
const FULL: &str = "a queue refuses what is to be tried again, or is dead; the log says which";

/// Begins to take deliveries.
///
/// # Errors
/// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
pub(super) async fn start(broker: Broker, subscription: Subscription) -> Result<Consumer, QueueError> {
    let (to_main, main) = Lane::new();
    let (to_suspects, suspects) = Suspects::new();
    let intake = Intake { topology: Topology::new(broker.prefix()), broker, subscription };
    intake.subscription.obstacles.add(NO_BROKER);
    let first = match Session::open(&intake).await {
        Ok(session) => Some(session),
        Err(error) if error.is_final() => return Err(error),
        Err(error) => {
            warn!(%error, "the broker is not there yet; will try again");
            None
        }
    };
    let closed = tokio::spawn(intake.run(first, Lanes { main: to_main, suspects: to_suspects }));
    Ok(Consumer { main, suspects, closed })
}

/// One channel's deliveries, and where they can be moved to.
#[derive(Debug)]
struct ChannelOrigin {
    acks: Arc<Acks>,
    moves: Arc<Moves>,
}

impl Origin for ChannelOrigin {
    fn ack(&self, deliveries: Vec<Delivery>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let tags: BTreeSet<_> = deliveries.iter().map(|delivery| delivery.tag).collect();
            if let Err(error) = self.acks.ack(&tags).await {
                info!(%error, deliveries = tags.len(), "the channel of what is done was gone: it will come again");
            }
        })
    }

    /// In the background, since a broker that is short of memory takes its time: what comes after need not wait. The
    /// session waits for it before it closes.
    ///
    /// Where one of the two connections is gone, it is let go of: it comes back.
    fn move_to(&self, delivery: Delivery, destination: Destination) {
        let (acks, moves) = (self.acks.clone(), self.moves.clone());
        tokio::spawn(async move {
            let queue = moves.queue(&destination);
            while acks.is_open() && moves.confirms.is_up() {
                match moves.publish(&queue, &delivery.message, &destination).await {
                    // Only now that the broker has confirmed it there.
                    Ok(()) => {
                        moves.obstacles.remove(FULL);
                        return delivery.ack().await;
                    }
                    Err(error) => {
                        if matches!(error, PublishError::Refused) {
                            moves.obstacles.add(FULL);
                        }
                        warn!(%error, queue, message_id = %delivery.message.id, "a delivery could not be moved; will try again");
                        sleep(SETTLE_AGAIN).await;
                    }
                }
            }
        });
    }

    fn is_open(&self) -> bool {
        self.acks.is_open()
    }
}

/// Where a delivery can be moved to.
#[derive(Debug)]
struct Moves {
    /// A connection of its own: a broker that is short of memory blocks a connection that publishes, acknowledgements and all.
    confirms: Confirms,
    topology: Topology,
    retries: Retries,
    deliveries: TaskTracker,
    in_hand: InHand,
    obstacles: Obstacles,
}

impl Moves {
    /// Which queue that is.
    fn queue(&self, destination: &Destination) -> String {
        let (topology, worker) = (&self.topology, self.retries.worker);
        match destination {
            Destination::Later(delay) => self.retry(*delay),
            Destination::Queue => topology.queue(worker),
            Destination::Suspects => topology.suspect(worker),
            Destination::Dead(_) => topology.dead(worker),
        }
    }

    /// The schedule's first delay that is as long, or its longest.
    fn retry(&self, delay: Duration) -> String {
        let Retries { worker, delays } = &self.retries;
        let known = delays.iter().find(|known| **known >= delay).or(delays.last());
        known.map_or_else(|| self.topology.queue(*worker), |known| self.topology.retry(*worker, *known))
    }

    /// What this session has told of itself is no more true, or not for it to say.
    fn forget_obstacles(&self) {
        self.obstacles.remove(FULL);
        self.obstacles.remove(BLOCKED);
    }

    async fn publish(&self, queue: &str, message: &Message, destination: &Destination) -> Result<(), PublishError> {
        let death = match destination {
            Destination::Dead(death) => Some(death),
            _ => None,
        };
        let properties = || message.properties(death);
        // For as long as the connection lasts: publishing again while the first is under way makes two of one.
        self.confirms.publish(&self.topology.moves(), queue, &message.body, properties).await
    }
}

#[derive(Debug)]
struct Lanes {
    main: LaneSource,
    suspects: SuspectSource,
}

/// What keeps the deliveries coming.
struct Intake {
    broker: Broker,
    topology: Topology,
    subscription: Subscription,
}

/// One connection's life.
struct Session {
    connection: Connection,
    main: OwnQueue,
    suspects: SuspectQueue,
    moves: Arc<Moves>,
}

/// The worker's own queue, consumed on a channel of its own.
struct OwnQueue {
    channel: Channel,
    consumer: lapin::Consumer,
    origin: Arc<ChannelOrigin>,
}

/// The suspect queue, on a channel of its own.
struct SuspectQueue {
    name: String,
    channel: Channel,
    origin: Arc<ChannelOrigin>,
}

impl Intake {
    async fn run(self, first: Option<Session>, mut lanes: Lanes) {
        let Subscription { worker, obstacles, stop, .. } = &self.subscription;
        let mut session = first;
        let mut backoff = Backoff::new();
        // One that is open may have had deliveries already: they are handed on, or come back with a count.
        while session.is_some() || !stop.is_cancelled() {
            if let Some(mut open) = session.take() {
                info!(%worker, "taking deliveries");
                obstacles.remove(NO_BROKER);
                obstacles.remove(REFUSED);
                match open.deliver(&mut lanes, &self.subscription).await {
                    Ok(()) => {
                        drop(lanes);
                        return open.close().await;
                    }
                    Err(reason) => warn!(reason, "the connection to the broker was lost"),
                }
                obstacles.add(NO_BROKER);
                // What is not settled comes back, also where only a part of the session has ended.
                lanes.suspects.none_during(open.abandon()).await;
                backoff = Backoff::new();
            }
            if lanes.suspects.none_during(stop.run_until_cancelled(sleep(backoff.next()))).await.is_none() {
                return;
            }
            match lanes.suspects.none_during(Session::open(&self)).await {
                Ok(opened) => session = Some(opened),
                // Only a start may refuse.
                Err(error) if error.is_final() => {
                    if obstacles.add(REFUSED) {
                        error!(%error, "no deliveries can be taken until this is put right; will try again");
                    }
                }
                Err(error) => {
                    obstacles.remove(REFUSED);
                    warn!(%error, "the broker is not there; will try again");
                }
            }
        }
    }
}

impl Session {
    async fn open(intake: &Intake) -> Result<Self, QueueError> {
        let opened = timeout(OPEN_TIMEOUT, Self::open_in_any_time(intake)).await;
        opened.unwrap_or_else(|_| Err(intake.broker.unavailable("its queues do not answer in time")))
    }

    async fn open_in_any_time(intake: &Intake) -> Result<Self, QueueError> {
        let Intake { broker, topology, subscription } = intake;
        let Subscription { worker, retry, prefetch, .. } = subscription;
        let retries = Retries::of(*worker, retry);
        let moves = Arc::new(Moves {
            confirms: Confirms::open(broker.clone(), topology.clone(), Some(retries.clone())).await?,
            topology: topology.clone(),
            retries,
            deliveries: TaskTracker::new(),
            in_hand: subscription.in_hand.clone(),
            obstacles: subscription.obstacles.clone(),
        });
        let connection = broker.connect().await?;
        let main = OwnQueue::open(broker, &connection, &topology.queue(*worker), *prefetch, &moves).await?;
        let suspects = SuspectQueue::open(broker, &connection, topology.suspect(*worker), &moves).await?;
        Ok(Self { connection, main, suspects, moves })
    }

    /// Hands deliveries to the lanes until told to stop.
    ///
    /// # Errors
    /// What ended the session instead.
    async fn deliver(&mut self, lanes: &mut Lanes, subscription: &Subscription) -> Result<(), String> {
        let moves = self.moves.clone();
        let mut look = interval(LOOK_FOR_SUSPECTS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lost = pin!(moves.confirms.lost());
        let mut stopping = false;
        loop {
            tokio::select! {
                () = &mut lost => return Err("the channel for moving messages has ended".to_owned()),
                () = subscription.stop.cancelled(), if !stopping => {
                    stopping = true;
                    // Before that: once the queue has taken the consumer off, it has what was acknowledged until here.
                    self.main.origin.acks.end().await;
                    self.main.cancel().await?;
                }
                next = self.main.consumer.next() => match delivered(next, stopping)? {
                    Some((delivery, came_back)) => {
                        let delivery = self.main.origin.take(delivery).await;
                        if came_back {
                            set_aside(delivery);
                        } else {
                            lanes.main.give(delivery);
                        }
                    }
                    None => return Ok(()),
                },
                _ = look.tick() => {
                    if moves.confirms.is_blocked() {
                        moves.obstacles.add(BLOCKED);
                    } else {
                        moves.obstacles.remove(BLOCKED);
                    }
                    lanes.suspects.tell(self.suspects.are_waiting().await?);
                }
                Some(ask) = lanes.suspects.asks.recv(), if !stopping => match self.suspects.next().await? {
                    Some(delivery) => drop(ask.send(delivery)),
                    None => lanes.suspects.tell(false),
                },
            }
        }
    }
}

impl Session {
    /// Waits until every delivery is settled, and until the broker has that; as long as it can be.
    async fn close(self) {
        self.moves.forget_obstacles();
        self.moves.deliveries.close();
        tokio::select! {
            () = self.moves.deliveries.wait() => {}
            () = self.lost() => {
                warn!("the connection to the broker was lost: what is not settled comes again");
                return self.abandon().await;
            }
        }
        for acks in [&self.main.origin.acks, &self.suspects.origin.acks] {
            if let Err(error) = acks.settled().await {
                info!(%error, "the channel of what is done was gone: some of it may come again");
            }
        }
        if let Err(error) = self.connection.close(DONE, "the worker stops".into()).await {
            info!(%error, "the connection to the broker did not close well");
        }
        self.moves.confirms.close("the worker stops").await;
    }

    /// Returns when nothing can be settled any more.
    async fn lost(&self) {
        while self.main.origin.is_open() && self.suspects.origin.is_open() {
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Closes what is left of a session that has lost a part of itself.
    async fn abandon(self) {
        self.moves.forget_obstacles();
        // It is gone already, or does not matter any more.
        let _ = timeout(CLOSE_TIMEOUT, self.connection.close(DONE, "starting anew".into())).await;
        self.moves.confirms.close("starting anew").await;
    }
}

impl ChannelOrigin {
    fn on(channel: &Channel, moves: &Arc<Moves>) -> Arc<Self> {
        Arc::new(Self { acks: Arc::new(Acks::on(channel.clone())), moves: moves.clone() })
    }

    async fn take(self: &Arc<Self>, delivery: lapin::message::Delivery) -> Delivery {
        self.acks.delivered(delivery.delivery_tag).await;
        let message = Message::read(&delivery.properties, delivery.data);
        Delivery {
            in_hand: self.moves.in_hand.take(message.received_at),
            message,
            tag: delivery.delivery_tag,
            origin: self.clone(),
            _unsettled: self.moves.deliveries.token(),
        }
    }
}

impl OwnQueue {
    async fn open(
        broker: &Broker,
        connection: &Connection,
        queue: &str,
        prefetch: u16,
        moves: &Arc<Moves>,
    ) -> Result<Self, QueueError> {
        let name = format!("queue {queue}");
        let failed = |error: lapin::Error| broker.error(&name, &error);
        let channel = connection.create_channel().await.map_err(failed)?;
        channel.basic_qos(prefetch, BasicQosOptions::default()).await.map_err(failed)?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await.map_err(failed)?;
        Ok(Self { origin: ChannelOrigin::on(&channel, moves), channel, consumer })
    }

    async fn cancel(&self) -> Result<(), String> {
        let cancelled = self.channel.basic_cancel(self.consumer.tag(), BasicCancelOptions::default()).await;
        cancelled.map_err(|error| error.to_string())
    }
}

impl SuspectQueue {
    async fn open(
        broker: &Broker,
        connection: &Connection,
        name: String,
        moves: &Arc<Moves>,
    ) -> Result<Self, QueueError> {
        let channel = connection.create_channel().await;
        let channel = channel.map_err(|error| broker.error(&format!("queue {name}"), &error))?;
        Ok(Self { origin: ChannelOrigin::on(&channel, moves), name, channel })
    }

    async fn are_waiting(&self) -> Result<bool, String> {
        let passive = QueueDeclareOptions::durable().passive();
        let declared = self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default());
        Ok(self.answered(declared).await?.message_count() > 0)
    }

    /// What the broker answers, which others wait for: a queue without a leader may never answer.
    async fn answered<T>(&self, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, String> {
        match timeout(ANSWER_TIMEOUT, answer).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("queue {} does not answer", self.name)),
        }
    }

    async fn next(&self) -> Result<Option<Delivery>, String> {
        match self.answered(self.channel.basic_get(self.name.as_str().into(), BasicGetOptions::default())).await? {
            Some(got) => Ok(Some(self.origin.take(got.delivery).await)),
            None => Ok(None),
        }
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
            let came_back = delivery.redelivered || properties::delivery_count(&delivery.properties) > 0;
            Ok(Some((delivery, came_back)))
        }
        None if stopping => Ok(None),
        None => Err("the broker cancelled the consumer: was its queue deleted?".to_owned()),
        Some(Err(error)) => Err(error.to_string()),
    }
}

fn set_aside(delivery: Delivery) {
    info!(message_id = %delivery.message.id, "a delivery came back unacknowledged: it is taken alone from now on");
    delivery.move_to(Destination::Suspects);
}
