//! Deliveries over AMQP: two connections, a channel for each lane, and a new session whenever any of it is lost.
//!
//! The worker's own queue is consumed. What comes back from it is moved to the suspect queue before any rule sees it, and
//! the suspect queue is not consumed: a suspect is got when it is asked for, so that none is ours while others are at work
//! whose death would count against it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use lapin::options::{
    BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::acks::Acks;
use super::broker::{Backoff, Broker};
use super::properties;
use super::topology::Topology;
use crate::event::WorkerName;
use crate::queue::delivery::{Consumer, Delivery, Destination, Lane, Origin, Subscription, SuspectSource, Suspects};
use crate::queue::{InHand, Message, QueueError};

/// How often to look whether the channel for moves is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long a connection may take to close that is not wanted any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often to look whether suspects wait.
const LOOK_FOR_SUSPECTS: Duration = Duration::from_secs(1);
/// How long to wait before trying again to settle a delivery whose connection is still up.
const SETTLE_AGAIN: Duration = Duration::from_secs(1);

/// What a worker is told that has no session.
const NO_BROKER: &str = "no connection to the broker";

/// Begins to take deliveries.
///
/// # Errors
/// Waiting does not help: the broker refuses us, or a queue exists with other arguments.
pub(super) async fn start(broker: Broker, subscription: Subscription) -> Result<Consumer, QueueError> {
    let (to_main, main) = Lane::new(subscription.prefetch);
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
    fn move_to(&self, delivery: Delivery, destination: Destination) {
        let (queue, properties) = self.moves.properties(&delivery.message, &destination);
        let (acks, moves) = (self.acks.clone(), self.moves.clone());
        tokio::spawn(async move {
            while acks.is_open() {
                match moves.publish(&queue, &delivery.message.body, properties.clone()).await {
                    // Only now that the broker has confirmed it there.
                    Ok(()) => return delivery.ack().await,
                    Err(reason) => {
                        warn!(reason, queue, message_id = %delivery.message.id, "a delivery could not be moved; will try again");
                        sleep(SETTLE_AGAIN).await;
                    }
                }
            }
        });
    }
}

/// Where a delivery can be moved to.
#[derive(Debug)]
struct Moves {
    channel: Channel,
    topology: Topology,
    worker: WorkerName,
    delays: Arc<[Duration]>,
    deliveries: TaskTracker,
    in_hand: InHand,
}

impl Moves {
    /// Which queue that is, and the message for it.
    fn properties(&self, message: &Message, destination: &Destination) -> (String, BasicProperties) {
        let (topology, worker) = (&self.topology, self.worker);
        match destination {
            Destination::Later(delay) => (self.retry(*delay), message.properties()),
            Destination::Queue => (topology.queue(worker), message.properties()),
            Destination::Suspects => (topology.suspect(worker), message.properties()),
            Destination::Dead(death) => (topology.dead(worker), message.dead_properties(death)),
        }
    }

    /// The schedule's first delay that is as long, or its longest.
    fn retry(&self, delay: Duration) -> String {
        let known = self.delays.iter().find(|known| **known >= delay).or(self.delays.last());
        known.map_or_else(|| self.topology.queue(self.worker), |known| self.topology.retry(self.worker, *known))
    }

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
    /// Of its own: a broker that is short of memory blocks a connection that publishes, acknowledgements and all.
    moving: Connection,
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
        while !stop.is_cancelled() {
            if let Some(mut open) = session.take() {
                info!(%worker, "taking deliveries");
                obstacles.remove(NO_BROKER);
                match open.deliver(&mut lanes, &self.subscription).await {
                    Ok(()) => {
                        drop(lanes);
                        return open.close().await;
                    }
                    Err(reason) => warn!(reason, "the connection to the broker was lost"),
                }
                obstacles.add(NO_BROKER);
                // What is not settled comes back, also where only a part of the session has ended.
                open.abandon().await;
                backoff = Backoff::new();
            }
            if stop.run_until_cancelled(sleep(backoff.next())).await.is_none() {
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
        let Intake { broker, topology, subscription } = intake;
        let Subscription { worker, retry, prefetch, .. } = subscription;
        let connection = broker.connect().await?;
        topology.declare(broker, &connection).await?;
        topology.declare_retries(broker, &connection, *worker, retry.delays()).await?;
        let moving = broker.connect().await?;
        let moves = Arc::new(Moves {
            channel: broker.confirming_channel(&moving).await?,
            topology: topology.clone(),
            worker: *worker,
            delays: retry.delays().into(),
            deliveries: TaskTracker::new(),
            in_hand: subscription.in_hand.clone(),
        });
        let main = OwnQueue::open(broker, &connection, &topology.queue(*worker), *prefetch, &moves).await?;
        let suspects = SuspectQueue::open(broker, &connection, topology.suspect(*worker), &moves).await?;
        Ok(Self { connection, moving, main, suspects, moves })
    }

    /// Hands deliveries to the lanes until told to stop.
    ///
    /// # Errors
    /// What ended the session instead.
    async fn deliver(&mut self, lanes: &mut Lanes, subscription: &Subscription) -> Result<(), String> {
        let moves = self.moves.clone();
        let mut look = interval(LOOK_FOR_SUSPECTS);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        loop {
            tokio::select! {
                () = moves.lost() => return Err("the channel for moving messages has ended".to_owned()),
                () = subscription.stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.main.cancel().await?;
                }
                next = self.main.consumer.next() => match delivered(next, stopping)? {
                    Some((delivery, came_back)) => {
                        let delivery = self.main.origin.take(delivery).await;
                        if came_back {
                            set_aside(delivery);
                        } else {
                            // A worker that has gone does not take it: it comes back when the channel ends.
                            drop(lanes.main.send(delivery).await);
                        }
                    }
                    None => return Ok(()),
                },
                _ = look.tick() => lanes.suspects.tell(self.suspects.are_waiting().await?),
                Some(ask) = lanes.suspects.asks.recv(), if !stopping => match self.suspects.next().await? {
                    Some(delivery) => drop(ask.send(delivery)),
                    None => lanes.suspects.tell(false),
                },
            }
        }
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
        let queue = self.channel.queue_declare(self.name.as_str().into(), passive, FieldTable::default()).await;
        queue.map(|queue| queue.message_count() > 0).map_err(|error| error.to_string())
    }

    async fn next(&self) -> Result<Option<Delivery>, String> {
        let got = self.channel.basic_get(self.name.as_str().into(), BasicGetOptions::default()).await;
        match got.map_err(|error| error.to_string())? {
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
