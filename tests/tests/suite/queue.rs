//! How the queue behaves, whichever the back end: each behaviour over RabbitMQ and in a file.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use rollcall_shared::config::Settings;
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{Consumer, DeadKind, Delivery, InHand, Message, Publisher, Queue, Subscription, Suspects};
use rollcall_shared::telemetry::obstacles::Obstacles;
use rollcall_tests::installation::Installation;
use rollcall_tests::joins::join;
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(60);
/// How long something is waited for that must not come.
const NOTHING_COMES: Duration = Duration::from_millis(500);
/// The first and the last delay of the installations' schedule.
const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(2);

rollcall_tests::on_both_back_ends!(
    a_message_comes_back_with_every_field_as_it_went,
    messages_come_in_the_order_in_which_they_were_published,
    only_the_worker_that_wants_an_event_gets_it,
    no_more_is_unsettled_at_once_than_was_asked_for,
    what_is_acknowledged_does_not_come_again,
    what_was_not_settled_comes_back_as_a_suspect,
    a_suspect_is_given_to_one_at_a_time,
    a_suspect_comes_alone_and_its_neighbours_go_on,
    a_retry_comes_back_no_earlier_and_says_what_went_wrong,
    a_long_delay_holds_up_no_short_one,
    what_is_postponed_has_not_failed,
    what_is_handed_back_goes_to_the_end_and_is_no_suspect,
    what_is_buried_is_dead_and_says_why,
    consumers_share_and_none_gets_what_another_has,
    a_consumer_that_is_told_to_stop_gives_out_what_it_has_and_ends_once_that_is_settled,
    of_many_publishers_every_confirmed_message_is_there_once,
    what_another_process_publishes_is_seen,
    what_waits_is_counted_by_queue,
    a_process_that_is_killed_gives_its_deliveries_back,
    what_kills_its_process_again_and_again_is_dead,
);

/// One program's part in the queue of an installation.
struct Side {
    queue: Queue,
    settings: Settings,
    publisher: Publisher,
}

impl Side {
    async fn of(installation: &Installation) -> Self {
        rollcall_shared::tls::use_ring();
        let settings = installation.load_settings();
        let queue = Queue::open(&settings.queue, "the tests").unwrap();
        let publisher = queue.publisher(&settings.ingress).await.unwrap();
        Self { queue, settings, publisher }
    }

    async fn publish(&self, message: Message) {
        self.publisher.publish(message, LIMIT).await.unwrap();
    }

    /// Publishes joins with these bodies, one after the other.
    async fn joins<B: Into<String>>(&self, bodies: impl IntoIterator<Item = B>) {
        for body in bodies {
            self.publish(a_join(body)).await;
        }
    }

    async fn taking(&self, worker: WorkerName, prefetch: u16) -> Taking {
        let stop = CancellationToken::new();
        let retry = self.settings.retry(worker).clone();
        let subscription = Subscription {
            worker,
            retry,
            prefetch,
            in_hand: InHand::default(),
            obstacles: Obstacles::default(),
            stop: stop.clone(),
        };
        Taking { consumer: self.queue.consumer(subscription).await.unwrap(), stop }
    }

    async fn attendance(&self, prefetch: u16) -> Taking {
        self.taking(WorkerName::Attendance, prefetch).await
    }
}

/// A worker that takes deliveries.
struct Taking {
    consumer: Consumer,
    stop: CancellationToken,
}

impl Taking {
    /// The next of the worker's own queue.
    async fn one(&mut self) -> Delivery {
        self.batch(1).await.remove(0)
    }

    /// So many of the worker's own queue.
    async fn batch(&mut self, count: usize) -> Vec<Delivery> {
        let mut batch = Vec::new();
        let all = async {
            while batch.len() < count {
                batch.extend(self.consumer.main.next_batch(count - batch.len(), LIMIT).await.expect("the lane ended"));
            }
        };
        timeout(LIMIT, all).await.unwrap_or_else(|_| panic!("not {count} came"));
        batch
    }

    async fn nothing_comes(&mut self) {
        let came = timeout(NOTHING_COMES, self.consumer.main.next_batch(1, Duration::ZERO)).await;
        assert!(came.is_err(), "there came {came:?}");
    }

    async fn suspect(&mut self) -> Delivery {
        timeout(LIMIT, next_suspect(&mut self.consumer.suspects)).await.expect("no suspect came")
    }

    /// Stops it, with what it has not given out and what was not settled; waits until it has ended.
    async fn end(self) {
        self.stop.cancel();
        let Consumer { main, suspects, closed } = self.consumer;
        drop((main, suspects));
        timeout(LIMIT, closed).await.expect("it does not end").unwrap();
    }
}

async fn next_suspect(suspects: &mut Suspects) -> Delivery {
    while suspects.wait().await {
        if let Some(suspect) = suspects.take().await {
            return suspect;
        }
    }
    panic!("the suspects ended");
}

fn a_join(body: impl Into<String>) -> Message {
    Message::new("main", "participant_joined", Bytes::from(body.into()))
}

fn body(delivery: &Delivery) -> &str {
    str::from_utf8(&delivery.message.body).unwrap()
}

fn bodies(deliveries: &[Delivery]) -> Vec<&str> {
    deliveries.iter().map(body).collect()
}

fn ids<'a>(messages: impl IntoIterator<Item = &'a Message>) -> BTreeSet<Uuid> {
    messages.into_iter().map(|message| message.id).collect()
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// To the millisecond, as times travel.
fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_millis(Utc::now().timestamp_millis()).unwrap()
}

/// How many of the attendance worker's wait where a queue's name has this part behind the worker's.
async fn waiting(installation: &Installation, part: &str) -> u32 {
    let depths = broker::depths(installation).await.unwrap();
    let of_part = depths.iter().filter(|(queue, _)| {
        let rest = queue.strip_prefix("attendance");
        rest.is_some_and(|rest| if part.is_empty() { rest.is_empty() } else { rest.starts_with(part) })
    });
    of_part.map(|(_, count)| count).sum()
}

async fn until_waiting(installation: &Installation, part: &str, count: u32) {
    eventually(LIMIT, || async {
        let found = waiting(installation, part).await;
        if found == count { Ok(()) } else { Err(format!("{found} of {count} in attendance{part}")) }
    })
    .await;
}

async fn a_message_comes_back_with_every_field_as_it_went(installation: Installation) {
    let side = Side::of(&installation).await;
    let bare = Message { received_at: now(), ..a_join("") };
    let odd = "نام \u{1f600} \0 \r\n \" ' ; -- \\ %s \u{202e}";
    let full = Message {
        event_id: Some(odd.into()),
        event: "participant_left".into(),
        room_id: Some(odd.repeat(20)),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        attempt: 7,
        first_failed_at: Some(now() - chrono::TimeDelta::days(400)),
        last_error: Some(odd.into()),
        body: (0..1024 * 1024).map(|at| (at % 251) as u8).collect(),
        ..bare.clone()
    };
    let full = Message { id: Uuid::now_v7(), ..full };
    let empty =
        Message { id: Uuid::now_v7(), event_id: Some(String::new()), room_id: Some(String::new()), ..bare.clone() };
    for message in [&bare, &full, &empty] {
        side.publish(message.clone()).await;
    }
    let mut taking = side.attendance(10).await;
    let came = taking.batch(3).await;
    for (delivery, message) in came.iter().zip([bare, full, empty]) {
        assert!(delivery.message == message, "{:?} is not {:?}", delivery.message.id, message.id);
    }
    Delivery::ack_all(came).await;
    taking.end().await;
}

async fn messages_come_in_the_order_in_which_they_were_published(installation: Installation) {
    let side = Side::of(&installation).await;
    let mut taking = side.attendance(20).await;
    let numbers = numbers(100);
    side.joins(&numbers).await;
    let mut came = Vec::new();
    while came.len() < numbers.len() {
        let one = taking.one().await;
        came.push(body(&one).to_owned());
        one.ack().await;
    }
    assert_eq!(came, numbers);
    taking.end().await;
}

async fn only_the_worker_that_wants_an_event_gets_it(installation: Installation) {
    let side = Side::of(&installation).await;
    let events = WorkerName::ALL.into_iter().flat_map(|worker| worker.wants());
    for event in events.chain(&["track_published"]) {
        side.publish(Message::new("main", event, Bytes::from(*event))).await;
    }
    for worker in WorkerName::ALL {
        let mut taking = side.taking(worker, 20).await;
        let came = taking.batch(worker.wants().len()).await;
        assert_eq!(bodies(&came), worker.wants());
        Delivery::ack_all(came).await;
        taking.nothing_comes().await;
        taking.end().await;
    }
    let unrouted = BTreeMap::from([("unrouted".to_owned(), 1)]);
    assert_eq!(broker::depths(&installation).await.unwrap(), unrouted);
}

async fn no_more_is_unsettled_at_once_than_was_asked_for(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(numbers(10)).await;
    let mut taking = side.attendance(4).await;
    let held = taking.batch(4).await;
    taking.nothing_comes().await;
    assert_eq!(waiting(&installation, "").await, 6);
    // In the order that suits it.
    for delivery in held.into_iter().rev() {
        delivery.ack().await;
    }
    let held = taking.batch(4).await;
    assert_eq!(bodies(&held), ["4", "5", "6", "7"]);
    taking.nothing_comes().await;
    Delivery::ack_all(held).await;
    Delivery::ack_all(taking.batch(2).await).await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn what_is_acknowledged_does_not_come_again(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["first", "second"]).await;
    let mut taking = side.attendance(1).await;
    taking.one().await.ack().await;
    let second = taking.one().await;
    second.ack().await;
    taking.end().await;
    side.joins(["third"]).await;
    let mut taking = side.attendance(10).await;
    let third = taking.one().await;
    assert_eq!(body(&third), "third");
    third.ack().await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn what_was_not_settled_comes_back_as_a_suspect(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["a", "b", "c"]).await;
    let mut taking = side.attendance(10).await;
    let held = taking.batch(3).await;
    let gone = ids(held.iter().map(|delivery| &delivery.message));
    drop(held);
    taking.end().await;

    let mut taking = side.attendance(10).await;
    side.joins(["after"]).await;
    let after = taking.one().await;
    assert_eq!(body(&after), "after");
    after.ack().await;
    taking.nothing_comes().await;
    let suspects = [taking.suspect().await, taking.suspect().await, taking.suspect().await];
    assert_eq!(ids(suspects.iter().map(|delivery| &delivery.message)), gone);
    for suspect in suspects {
        // It did not fail: whoever had it did.
        assert_eq!((suspect.message.attempt, &suspect.message.last_error), (0, &None));
        suspect.ack().await;
    }
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

/// Leaves a suspect behind.
async fn make_suspect(side: &Side, body: &str) {
    side.joins([body]).await;
    let mut taking = side.attendance(1).await;
    drop(taking.one().await);
    taking.end().await;
}

async fn a_suspect_is_given_to_one_at_a_time(installation: Installation) {
    let side = Side::of(&installation).await;
    make_suspect(&side, "suspect").await;
    let mut first = side.attendance(10).await;
    let mut second = side.attendance(10).await;
    let suspect = first.suspect().await;
    assert!(second.consumer.suspects.take().await.is_none());
    assert!(first.consumer.suspects.take().await.is_none());
    drop(suspect);
    first.end().await;
    // The next in turn, once it is nobody's.
    let suspect = second.suspect().await;
    assert_eq!(body(&suspect), "suspect");
    suspect.ack().await;
    second.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn a_suspect_comes_alone_and_its_neighbours_go_on(installation: Installation) {
    let side = Side::of(&installation).await;
    make_suspect(&side, "suspect").await;
    side.joins(numbers(20)).await;
    let mut taking = side.attendance(5).await;
    // Nobody asks for it: it holds up nothing.
    for number in numbers(20) {
        let one = taking.one().await;
        assert_eq!(body(&one), number);
        one.ack().await;
    }
    until_waiting(&installation, ".suspect", 1).await;
    taking.suspect().await.retry(SHORT, "one of its own");
    // What it is again, for whoever it comes to.
    let again = taking.one().await;
    assert_eq!((body(&again), again.message.attempt), ("suspect", 1));
    again.ack().await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn a_retry_comes_back_no_earlier_and_says_what_went_wrong(installation: Installation) {
    let side = Side::of(&installation).await;
    let message = Message { received_at: now(), room_id: Some("algebra".into()), ..a_join("{}") };
    side.publish(message.clone()).await;
    let mut taking = side.attendance(10).await;
    let (first, before, since) = (taking.one().await, now(), Instant::now());
    first.retry(SHORT, "it went \0 wrong: ن");
    let second = taking.one().await;
    assert!(since.elapsed() >= SHORT, "after {:?}", since.elapsed());
    let first_failed_at = second.message.first_failed_at.unwrap();
    assert!((before..=now()).contains(&first_failed_at));
    let failed = |attempt, error: &str| Message {
        attempt,
        first_failed_at: Some(first_failed_at),
        last_error: Some(error.into()),
        ..message.clone()
    };
    assert_eq!(second.message, failed(1, "it went \0 wrong: ن"));
    let since = Instant::now();
    second.retry(Duration::from_secs(1), &"é".repeat(5_000));
    let third = taking.one().await;
    assert!(since.elapsed() >= Duration::from_secs(1), "after {:?}", since.elapsed());
    // As much of it as travels.
    assert_eq!(third.message, failed(2, &"é".repeat(2_000)));
    third.ack().await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn a_long_delay_holds_up_no_short_one(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["long", "short"]).await;
    let mut taking = side.attendance(10).await;
    let (long, short) = (taking.one().await, taking.one().await);
    let since = Instant::now();
    long.retry(LONG, "wait");
    short.retry(SHORT, "wait");
    let first = taking.one().await;
    assert_eq!(body(&first), "short");
    let second = taking.one().await;
    assert_eq!(body(&second), "long");
    assert!(since.elapsed() >= LONG, "after {:?}", since.elapsed());
    Delivery::ack_all(vec![first, second]).await;
    taking.end().await;
}

async fn what_is_postponed_has_not_failed(installation: Installation) {
    let side = Side::of(&installation).await;
    let message = Message { received_at: now(), ..a_join("{}") };
    side.publish(message.clone()).await;
    let mut taking = side.attendance(10).await;
    let (first, since) = (taking.one().await, Instant::now());
    first.postpone(Duration::from_millis(700));
    let second = taking.one().await;
    assert!(since.elapsed() >= Duration::from_millis(700), "after {:?}", since.elapsed());
    assert_eq!(second.message, message);
    second.ack().await;
    taking.end().await;
}

async fn what_is_handed_back_goes_to_the_end_and_is_no_suspect(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["a", "b"]).await;
    let mut taking = side.attendance(1).await;
    let first = taking.one().await;
    let sent = first.message.clone();
    first.hand_back();
    let second = taking.one().await;
    assert_eq!(body(&second), "b");
    second.ack().await;
    let again = taking.one().await;
    assert_eq!(again.message, sent);
    again.ack().await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn what_is_buried_is_dead_and_says_why(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["permanent", "exhausted"]).await;
    let mut taking = side.attendance(10).await;
    let before = Utc::now().timestamp_millis();
    for (kind, error) in [(DeadKind::Permanent, "it cannot be"), (DeadKind::Exhausted, "not any more")] {
        taking.one().await.bury(kind, "a-cause", error);
    }
    taking.end().await;
    broker::only_dead(&installation, 2, LIMIT).await;
    let mut dead = broker::dead(&installation, "attendance").await;
    // Each in the background: in any order.
    dead.sort();
    for ((body, headers), (kind, error)) in
        dead.iter().zip([("exhausted", "not any more"), ("permanent", "it cannot be")])
    {
        assert_eq!((body.as_str(), headers["rollcall-dead-kind"].as_str()), (kind, kind));
        assert_eq!(headers["rollcall-last-error"], error);
        assert_eq!((headers["rollcall-attempt"].as_str(), headers["rollcall-source"].as_str()), ("1", "main"));
        assert!(!headers["rollcall-host"].is_empty());
        for time in ["rollcall-first-failed-at", "rollcall-last-failed-at"] {
            assert!((before..=Utc::now().timestamp_millis()).contains(&headers[time].parse().unwrap()), "{headers:?}");
        }
    }
    side.joins(["after"]).await;
    let mut taking = side.attendance(10).await;
    let after = taking.one().await;
    assert_eq!(body(&after), "after");
    after.ack().await;
    taking.nothing_comes().await;
    taking.end().await;
    broker::only_dead(&installation, 2, LIMIT).await;
}

async fn consumers_share_and_none_gets_what_another_has(installation: Installation) {
    const ALL: usize = 200;
    let side = Side::of(&installation).await;
    side.joins(numbers(ALL)).await;
    let mut both = [side.attendance(10).await, side.attendance(10).await];
    // As much as each may have, before any is settled.
    let mut came = Vec::new();
    for taking in &mut both {
        came.extend(taking.batch(10).await);
    }
    let mut seen = Vec::new();
    while seen.len() + came.len() < ALL {
        seen.extend(came.iter().map(|delivery| body(delivery).to_owned()));
        Delivery::ack_all(std::mem::take(&mut came)).await;
        let [first, second] = &mut both;
        came = tokio::select! { one = first.one() => vec![one], one = second.one() => vec![one] };
    }
    seen.extend(came.iter().map(|delivery| body(delivery).to_owned()));
    Delivery::ack_all(came).await;
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), numbers(ALL).into_iter().collect());
    for taking in both {
        taking.end().await;
    }
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn a_consumer_that_is_told_to_stop_gives_out_what_it_has_and_ends_once_that_is_settled(
    installation: Installation,
) {
    let side = Side::of(&installation).await;
    side.joins(numbers(20)).await;
    let mut taking = side.attendance(10).await;
    let mut held = taking.batch(3).await;
    until_waiting(&installation, "", 10).await;
    taking.stop.cancel();
    while let Some(rest) = taking.consumer.main.next_batch(2, Duration::ZERO).await {
        held.extend(rest);
    }
    assert_eq!(bodies(&held), numbers(10));
    assert!(!timeout(LIMIT, taking.consumer.suspects.wait()).await.unwrap());
    assert!(taking.consumer.suspects.take().await.is_none());
    assert!(!taking.consumer.closed.is_finished());
    held.remove(9).hand_back();
    held.remove(8).retry(SHORT, "after it was told to stop");
    held.remove(7).bury(DeadKind::Permanent, "a-cause", "as well");
    Delivery::ack_all(held).await;
    timeout(LIMIT, taking.consumer.closed).await.unwrap().unwrap();

    let mut taking = side.attendance(20).await;
    let rest = taking.batch(12).await;
    let found: BTreeSet<_> = bodies(&rest).into_iter().collect();
    let expected: Vec<_> = (8..20).map(|number| number.to_string()).collect();
    assert_eq!(found, expected.iter().map(String::as_str).collect());
    Delivery::ack_all(rest).await;
    taking.end().await;
    // Had one been left, it would be a suspect.
    broker::only_dead(&installation, 1, LIMIT).await;
}

async fn of_many_publishers_every_confirmed_message_is_there_once(installation: Installation) {
    const PUBLISHERS: usize = 16;
    const EACH: usize = 50;
    let sides = [Side::of(&installation).await, Side::of(&installation).await];
    let mut publishers = JoinSet::new();
    for number in 0..PUBLISHERS {
        let publisher = sides[number % 2].publisher.clone();
        publishers.spawn(async move {
            let mut confirmed = Vec::new();
            for _ in 0..EACH {
                let message = a_join("{}");
                confirmed.push(message.id);
                publisher.publish(message, LIMIT).await.unwrap();
            }
            confirmed
        });
    }
    let mut taking = sides[0].attendance(100).await;
    let mut came = Vec::new();
    while came.len() < PUBLISHERS * EACH {
        let batch = taking.consumer.main.next_batch(100, Duration::ZERO).await.unwrap();
        came.extend(batch.iter().map(|delivery| delivery.message.id));
        Delivery::ack_all(batch).await;
    }
    let confirmed: BTreeSet<_> = publishers.join_all().await.into_iter().flatten().collect();
    assert_eq!(came.into_iter().collect::<BTreeSet<_>>(), confirmed);
    taking.nothing_comes().await;
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn what_another_process_publishes_is_seen(installation: Installation) {
    let side = Side::of(&installation).await;
    let mut taking = side.attendance(10).await;
    let ingress = installation.ingress().await;
    let webhook = join("elsewhere", "نرگس").to_string();
    for _ in 0..3 {
        // Each finds the consumer waiting.
        Sender::new(&installation, "main", ingress.address).post(&webhook).await;
        let came = taking.one().await;
        assert_eq!(body(&came), webhook);
        assert_eq!((came.message.source.as_str(), came.message.room_id.as_deref()), ("main", Some("elsewhere")));
        assert_eq!(came.message.event_id.as_deref(), Some("EV_elsewhere_نرگس"));
        came.ack().await;
    }
    taking.end().await;
    ingress.process.stop().await;
}

async fn what_waits_is_counted_by_queue(installation: Installation) {
    let side = Side::of(&installation).await;
    make_suspect(&side, "suspect").await;
    side.joins(["retry", "dead", "held", "handed back", "waits"]).await;
    side.publish(Message::new("main", "room_started", Bytes::new())).await;
    let mut taking = side.attendance(4).await;
    let mut four = taking.batch(4).await;
    four.remove(0).retry(LONG, "later");
    four.remove(0).bury(DeadKind::Permanent, "a-cause", "never");
    four.remove(1).hand_back();
    // With room for more, the rest is had as well.
    let rest = taking.batch(2).await;
    until_waiting(&installation, ".suspect", 1).await;
    let depths = broker::depths(&installation).await.unwrap();
    let retry = if installation.is_on_files() { "attendance.retry" } else { "attendance.retry.2s" };
    let expected = [("attendance.dead", 1), (retry, 1), ("attendance.suspect", 1), ("rooms", 1)];
    assert_eq!(depths, expected.map(|(queue, count)| (queue.to_owned(), count)).into());
    drop((four, rest));
    taking.end().await;
}

async fn a_process_that_is_killed_gives_its_deliveries_back(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(numbers(5)).await;
    let holder = installation.spawn("rollcall-holder", &["--count", "5"]);
    holder.logs("has taken what it wants").await;
    let mut taking = side.attendance(10).await;
    side.joins(["meanwhile"]).await;
    let meanwhile = taking.one().await;
    assert_eq!(body(&meanwhile), "meanwhile");
    meanwhile.ack().await;
    // It is alive, if it does nothing.
    taking.nothing_comes().await;
    assert!(taking.consumer.suspects.take().await.is_none());
    holder.kill().await;
    let since = Instant::now();
    let mut came = Vec::new();
    while came.len() < 5 {
        let suspect = taking.suspect().await;
        came.push(body(&suspect).to_owned());
        suspect.ack().await;
    }
    // On RabbitMQ that is the broker's affair. Here it takes some 250 ms, and a machine may be busy.
    assert!(!installation.is_on_files() || since.elapsed() < Duration::from_secs(3), "after {:?}", since.elapsed());
    came.sort();
    assert_eq!(came, numbers(5));
    taking.end().await;
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

async fn what_kills_its_process_again_and_again_is_dead(installation: Installation) {
    let side = Side::of(&installation).await;
    side.joins(["poison"]).await;
    let holder = installation.spawn("rollcall-holder", &[]);
    holder.logs("has taken what it wants").await;
    holder.kill().await;
    let mut deaths = 0;
    let last = loop {
        let mut victim = installation.spawn("rollcall-holder", &["--suspect"]);
        tokio::select! {
            status = victim.ended() => assert!(!status.success()),
            () = broker::only_dead(&installation, 1, LIMIT) => break victim,
        }
        deaths += 1;
        assert!(deaths < 10, "it goes on killing");
    };
    assert_eq!(deaths, 4, "not as often as the other back end lets it");
    last.kill().await;
    let (body, headers) = broker::dead(&installation, "attendance").await.remove(0);
    assert_eq!(body, "poison");
    if installation.is_on_files() {
        assert_eq!(headers["rollcall-dead-kind"], "poison");
        assert!(headers["rollcall-last-error"].contains("died"), "{headers:?}");
        assert!(!headers["rollcall-host"].is_empty());
    } else {
        assert_eq!(headers["x-first-death-reason"], "delivery_limit");
    }
}
