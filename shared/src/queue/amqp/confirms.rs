//! Publishing with confirms: what is said to be published, the broker has on disk, in a queue.
//!
//! A [`Confirms`] is a connection to the broker that publishes, and this module is the only one that has channels in confirm
//! mode: it makes them itself and gives none of them out, so that one task alone publishes on them and reads their confirms.
//! lapin takes a message's delivery tag and queues its frames in two steps: two tasks on one channel could swap between them,
//! and be given each other's confirm. Besides, lapin reports from a thread of its own, twice a message (sent, confirmed): one
//! task is woken once for many of them, where a task a message would be woken for each, across threads.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::broker::{Backoff, Broker, DONE};
use super::properties::short;
use super::silence::{Destination, Silences};
use super::topology::{Retries, Topology};
use crate::queue::{PublishError, QueueError};

/// A broker works on one channel's messages one after the other, so a few channels share the load of one connection.
const CHANNELS: usize = 4;
/// How much may be on its way to the broker, in KiB: what a broker that takes nothing can make us hold.
const MAX_IN_FLIGHT_KIB: usize = 64 * 1024;
/// How often to look whether all channels are still there: one can end without its connection, and without an event.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How often to look for silence, while anything is on its way.
const LISTEN: Duration = Duration::from_secs(1);
/// How long a connection may take to close that is not wanted any more.
pub(super) const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long another channel may take to be opened.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the broker that publishes.
pub(super) struct Confirms {
    broker: Broker,
    topology: Topology,
    retries: Option<Retries>,
    connection: Arc<Connection>,
    /// To see whether they are still there: it is the task that publishes on them.
    channels: Channels,
    /// To the task that publishes. What may be on its way at once bounds it.
    publishing: mpsc::UnboundedSender<Publishing>,
    in_flight: Arc<Semaphore>,
    /// How often everything was declared anew.
    declared: AtomicU64,
    declaring: Mutex<()>,
}

/// The channels that are published on.
type Channels = Arc<std::sync::Mutex<Vec<Channel>>>;

/// A message on its way to the broker: it gets there even if nobody waits for it any more.
struct Publishing {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    body: Bytes,
    outcome: oneshot::Sender<Result<Fate, PublishError>>,
    _in_flight: OwnedSemaphorePermit,
}

/// What the broker did with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is on disk, in a queue.
    Taken,
    /// No queue took it, or that cannot be ruled out.
    Returned,
    /// The channel was given up before it said anything.
    Unanswered,
}

impl Confirms {
    /// Connects, and declares what the messages need that will be published.
    ///
    /// # Errors
    /// The broker is not there, refuses us, or has a queue with other arguments.
    pub(super) async fn open(broker: Broker, topology: Topology, retries: Option<Retries>) -> Result<Self, QueueError> {
        let connection = Arc::new(broker.connect().await?);
        topology.declare(&broker, &connection, retries.as_ref()).await?;
        let mut opened = Vec::with_capacity(CHANNELS);
        for _ in 0..CHANNELS {
            opened.push(channel_with_confirms(&broker, &connection).await?);
        }
        let channels: Channels = Arc::new(std::sync::Mutex::new(opened));
        let (publishing, to_publish) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(broker.clone(), connection.clone(), channels.clone()).run(to_publish));
        Ok(Self {
            broker,
            topology,
            retries,
            connection,
            channels,
            publishing,
            in_flight: Arc::new(Semaphore::new(MAX_IN_FLIGHT_KIB)),
            declared: AtomicU64::new(0),
            declaring: Mutex::default(),
        })
    }

    /// Publishes a message with an id. When this returns `Ok`, the broker has it on disk, in a queue. It may take for ever.
    ///
    /// What no queue takes is published again once everything is declared anew, and what a channel does not confirm, on another. If the caller does not wait for it, the message
    /// is published or it is not.
    ///
    /// # Errors
    /// The connection went away with the message, or the broker cannot store it. It may be stored all the same.
    pub(super) async fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &Bytes,
        properties: impl Fn() -> BasicProperties,
    ) -> Result<(), PublishError> {
        let mut backoff = Backoff::new();
        loop {
            let declared = self.declared.load(Ordering::Relaxed);
            let (outcome, published) = oneshot::channel();
            let kib = u32::try_from(body.len() / 1024 + 1).unwrap_or(u32::MAX).min(MAX_IN_FLIGHT_KIB as u32);
            let publishing = Publishing {
                exchange: short(exchange),
                routing_key: short(routing_key),
                properties: properties(),
                body: body.clone(),
                outcome,
                _in_flight: self.in_flight.clone().acquire_many_owned(kib).await.map_err(lost)?,
            };
            self.publishing.send(publishing).map_err(lost)?;
            match published.await.map_err(lost)?? {
                Fate::Taken => return Ok(()),
                Fate::Returned => self.declare_anew(declared).await.map_err(lost)?,
                Fate::Unanswered => {}
            }
            sleep(backoff.next()).await;
        }
    }

    /// Declares everything, unless somebody has since it was declared so often.
    async fn declare_anew(&self, declared: u64) -> Result<(), QueueError> {
        let _declaring = self.declaring.lock().await;
        if self.declared.load(Ordering::Relaxed) == declared {
            error!(
                "the broker may have had no queue for a message: what Rollcall declares is declared anew, in case it was deleted"
            );
            self.topology.declare(&self.broker, &self.connection, self.retries.as_ref()).await?;
            self.declared.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether anything can be published.
    pub(super) fn is_up(&self) -> bool {
        self.connection.status().connected()
            && locked(&self.channels).iter().all(|channel| channel.status().connected())
            && !self.publishing.is_closed()
    }

    /// Whether the broker takes nothing on this connection for now.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    /// Returns when the connection or one of its channels is gone.
    pub(super) async fn lost(&self) {
        let mut events = self.connection.events_listener();
        while self.is_up() {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => warn!(reason, "the broker takes no messages for now"),
                    Some(Event::ConnectionUnblocked) => info!("the broker takes messages again"),
                    Some(_) => {}
                    // Nobody will tell any more.
                    None => sleep(LOOK_AGAIN).await,
                },
                () = sleep(LOOK_AGAIN) => {}
            }
        }
    }

    /// Waits for what is on its way, for so long at most; whether all of it has got there.
    pub(super) async fn landed(&self, within: Duration) -> bool {
        let everything = u32::try_from(MAX_IN_FLIGHT_KIB).expect("the constant fits");
        timeout(within, self.in_flight.acquire_many(everything)).await.is_ok()
    }

    /// Closes the connection. One that is blocked says nothing more to the broker; everything is settled by now, or lost with it.
    pub(super) async fn close(&self, reason: &str) {
        match timeout(CLOSE_TIMEOUT, self.connection.close(DONE, reason.into())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => info!(%error, "the connection to the broker did not close well"),
            Err(_) => info!("the connection to the broker did not close in time"),
        }
    }
}

impl fmt::Debug for Confirms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Confirms").field("channels", &self.channels).finish_non_exhaustive()
    }
}

fn lost(error: impl fmt::Display) -> PublishError {
    PublishError::Lost(error.to_string())
}

fn locked(channels: &Channels) -> std::sync::MutexGuard<'_, Vec<Channel>> {
    // Nobody panics beside it.
    channels.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn channel_with_confirms(broker: &Broker, connection: &Connection) -> Result<Channel, QueueError> {
    let channel = broker.channel(connection).await?;
    let selected = channel.confirm_select(ConfirmSelectOptions::default()).await;
    selected.map_err(|error| broker.error("publisher confirms", &error))?;
    Ok(channel)
}

/// A message whose confirm has come, or will not come.
struct Confirmed {
    /// Of the lane that it was published on.
    lane: u64,
    to: Destination,
    id: Option<ShortString>,
    /// None where its channel was given up.
    confirmation: Option<lapin::Result<Confirmation>>,
    outcome: oneshot::Sender<Result<Fate, PublishError>>,
    _in_flight: OwnedSemaphorePermit,
}

impl Publishing {
    /// For as long as the channel lasts, not for as long as somebody waits: lapin keeps what nobody waits for.
    async fn run(self, lane: u64, channel: Channel, given_up: CancellationToken) -> Confirmed {
        let Self { exchange, routing_key, properties, body, outcome, _in_flight } = self;
        let (id, to) = (properties.message_id().clone(), (exchange.clone(), routing_key.clone()));
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmation =
            async { channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await };
        let confirmation = given_up.run_until_cancelled(confirmation).await;
        Confirmed { lane, to, id, confirmation, outcome, _in_flight }
    }
}

/// One channel of those that share the load.
struct Lane {
    /// No other lane has had it.
    id: u64,
    channel: Channel,
    silences: Silences,
    given_up: CancellationToken,
}

impl Lane {
    fn new(id: u64, channel: Channel, silences: Silences) -> Self {
        Self { id, channel, silences, given_up: CancellationToken::new() }
    }
}

/// The task that publishes.
struct Task {
    broker: Broker,
    connection: Arc<Connection>,
    channels: Channels,
    /// None while its channel is opened anew.
    lanes: Vec<Option<Lane>>,
    /// Which lane had the last message.
    turn: usize,
    next_id: u64,
    opening: FuturesUnordered<BoxFuture<'static, Opened>>,
}

/// What came of opening a channel in place of one that was given up.
struct Opened {
    place: usize,
    channel: Result<Channel, QueueError>,
    silences: Silences,
}

impl Task {
    fn new(broker: Broker, connection: Arc<Connection>, channels: Channels) -> Self {
        let opened = locked(&channels).clone();
        let lanes: Vec<_> =
            (0..).zip(opened).map(|(id, channel)| Some(Lane::new(id, channel, Silences::default()))).collect();
        let next_id = lanes.len() as u64;
        Self { broker, connection, channels, lanes, turn: 0, next_id, opening: FuturesUnordered::new() }
    }

    /// Publishes what comes on the channels in turn, until nobody can send any more and everything has its outcome; or until a
    /// channel cannot be opened in place of another.
    async fn run(mut self, mut coming: mpsc::UnboundedReceiver<Publishing>) {
        let mut under_way = FuturesUnordered::new();
        let mut returns = Returns::default();
        let mut looks = interval(LISTEN);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_open = true;
        while is_open || !under_way.is_empty() {
            let has_lane = self.lanes.iter().any(Option::is_some);
            tokio::select! {
                one = coming.recv(), if is_open && has_lane => match one {
                    Some(one) => under_way.push(self.publish(one)),
                    None => is_open = false,
                },
                Some(first) = under_way.next() => {
                    let mut ready = vec![first];
                    ready.extend(all_ready(&mut under_way));
                    self.listen(&ready);
                    returns.answer(ready);
                }
                _ = looks.tick(), if !under_way.is_empty() => self.give_up_the_silent(),
                Some(opened) = self.opening.next() => if let Err(error) = self.opened(opened) {
                    warn!(%error, "no channel can be opened in place of one that confirms nothing");
                    return;
                },
            }
        }
    }

    fn publish(&mut self, one: Publishing) -> impl Future<Output = Confirmed> + use<> {
        let places = self.lanes.len();
        let following = (1..=places).map(|steps| (self.turn + steps) % places);
        let place = following.into_iter().find(|place| self.lanes[*place].is_some());
        self.turn = place.expect("it is called where there is a lane");
        let lane = self.lanes[self.turn].as_mut().expect("it was found there");
        lane.silences.published(&(one.exchange.clone(), one.routing_key.clone()), Instant::now());
        one.run(lane.id, lane.channel.clone(), lane.given_up.clone())
    }

    /// Notes which channels have said something.
    fn listen(&mut self, confirmed: &[Confirmed]) {
        let mut has_refused = false;
        for one in confirmed {
            let Some(lane) = self.lanes.iter_mut().flatten().find(|lane| lane.id == one.lane) else { continue };
            match one.confirmation {
                Some(Ok(Confirmation::Ack(_))) => lane.silences.confirmed(&one.to, Instant::now()),
                _ => {
                    lane.silences.refused(&one.to);
                    has_refused = true;
                }
            }
        }
        // Whoever is refused at once has nothing on its way by the time that somebody looks.
        if has_refused {
            self.give_up_the_silent();
        }
    }

    /// Gives up the channels that have confirmed nothing for too long: what they have is published on others.
    fn give_up_the_silent(&mut self) {
        let now = Instant::now();
        for place in 0..self.lanes.len() {
            let Some(lane) = &mut self.lanes[place] else { continue };
            if self.connection.status().blocked() {
                lane.silences.forgive(now);
            }
            let Some((to, silent)) = lane.silences.unbearable(now) else { continue };
            let ((exchange, routing_key), seconds) = (&to, silent.as_secs());
            warn!(%exchange, %routing_key, seconds, "a channel's messages are not confirmed: going on on another");
            let silences = lane.silences.of_successor(to);
            if let Some(lane) = self.lanes[place].take() {
                locked(&self.channels).retain(|channel| channel.id() != lane.channel.id());
                lane.given_up.cancel();
                tokio::spawn(close(lane.channel));
            }
            self.open(place, silences);
        }
    }

    fn open(&self, place: usize, silences: Silences) {
        let (broker, connection) = (self.broker.clone(), self.connection.clone());
        self.opening.push(Box::pin(async move {
            let channel = timeout(OPEN_TIMEOUT, channel_with_confirms(&broker, &connection)).await;
            let channel = channel.unwrap_or_else(|_| Err(broker.unavailable("no channel in time")));
            Opened { place, channel, silences }
        }));
    }

    fn opened(&mut self, opened: Opened) -> Result<(), QueueError> {
        let Opened { place, channel, silences } = opened;
        let channel = channel?;
        locked(&self.channels).push(channel.clone());
        self.lanes[place] = Some(Lane::new(self.next_id, channel, silences));
        self.next_id += 1;
        Ok(())
    }
}

/// Takes out all that are ready, in the order in which they were woken. Where it is woken while it looks, there may be more: it has
/// yielded, or somebody is putting one in.
fn all_ready<F: Future>(under_way: &mut FuturesUnordered<F>) -> Vec<F::Output> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut ready = Vec::new();
    loop {
        woken.0.store(false, Ordering::SeqCst);
        match under_way.poll_next_unpin(&mut Context::from_waker(&waker)) {
            Poll::Ready(Some(next)) => ready.push(next),
            Poll::Pending if woken.0.load(Ordering::SeqCst) => std::thread::yield_now(),
            Poll::Ready(None) | Poll::Pending => return ready,
        }
    }
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Closes a channel that was given up. A broker that has got stuck with its messages may take for ever.
async fn close(channel: Channel) {
    if let Err(error) = channel.close(DONE, "its messages are not confirmed".into()).await {
        debug!(%error, "a channel that was given up did not close well");
    }
}

/// Messages that the broker has returned, and whose own confirms have not come yet.
///
/// The broker returns a message before it confirms it. lapin gives each return to whichever confirm completes next on that channel, so
/// a return is matched by its message's id. A message whose confirm came with nothing was returned only if an earlier confirm
/// came with its return: and those are looked at first, since they are woken, and so polled, in the order in which they complete. One
/// whose confirm came with another's return is in doubt, and counts as returned.
///
/// What the broker was too slow to confirm may be published once more while the first is still under way, so there may be several of one id.
#[derive(Default)]
struct Returns(HashMap<ShortString, usize>);

impl Returns {
    /// Whether one of this id was among them.
    fn remove(&mut self, id: &ShortString) -> bool {
        let Some(count) = self.0.get_mut(id) else { return false };
        *count -= 1;
        if *count == 0 {
            self.0.remove(id);
        }
        true
    }

    /// Answers messages whose confirms have come, in this order.
    fn answer(&mut self, confirmed: Vec<Confirmed>) {
        let came_with = confirmed.iter().filter_map(|one| match &one.confirmation {
            Some(Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)))) => {
                returned.properties.message_id().clone()
            }
            _ => None,
        });
        for id in came_with {
            *self.0.entry(id).or_default() += 1;
        }
        for Confirmed { id, confirmation, outcome, .. } in confirmed {
            let was_returned = id.is_some_and(|id| self.remove(&id));
            // Where nobody waits any more, the sender was told that the broker was too slow.
            let _ = outcome.send(match confirmation {
                Some(Ok(Confirmation::Ack(None))) if !was_returned => Ok(Fate::Taken),
                Some(Ok(Confirmation::Ack(_))) => Ok(Fate::Returned),
                Some(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => Err(PublishError::Refused),
                Some(Err(error)) => Err(lost(error)),
                None => Ok(Fate::Unanswered),
            });
        }
    }
}
