//! What RabbitMQ and the way to it do to whoever publishes, takes and settles: confirms, lost connections, what is held back, what
//! is deleted, what is not allowed any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use lapin::options::QueueDeleteOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use reqwest::StatusCode;
use rollcall_shared::config::Settings;
use rollcall_shared::event::WorkerName;
use rollcall_shared::queue::{Consumer, DeadKind, Delivery, InHand, Message, Publisher, Queue, Subscription};
use rollcall_shared::store::entity::{dead_letter, live_session_interval};
use rollcall_shared::telemetry::obstacles::Obstacles;
use rollcall_tests::command::rollcall;
use rollcall_tests::installation::{Ingress, Installation, Process};
use rollcall_tests::joins::{applied, join, join_of_nobody};
use rollcall_tests::load::{Load, all_applied};
use rollcall_tests::services::{self, Server};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually};
use sea_orm::{ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(90);

async fn on(rabbitmq: &Server) -> Installation {
    let mut installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    confirm_in_any_time(&mut installation);
    installation
}

/// What is not confirmed in time is spooled, and may be published twice: nothing that is to be counted.
fn confirm_in_any_time(installation: &mut Installation) {
    installation.set("ingress.confirm_timeout", "60s");
}

async fn publisher(installation: &Installation) -> Publisher {
    rollcall_shared::tls::use_ring();
    let settings = installation.load_settings();
    let queue = Queue::open(&settings.queue, "the tests").unwrap();
    queue.publisher(&settings.ingress).await.unwrap()
}

/// Publishes joins with these bodies, many at once.
async fn publish_all(publisher: &Publisher, bodies: impl IntoIterator<Item = String>) {
    let mut publishing = JoinSet::new();
    for body in bodies {
        let (publisher, message) = (publisher.clone(), Message::new("main", "participant_joined", Bytes::from(body)));
        publishing.spawn(async move { publisher.publish(message, LIMIT).await.unwrap() });
    }
    publishing.join_all().await;
}

fn body(delivery: &Delivery) -> String {
    String::from_utf8(delivery.message.body.to_vec()).unwrap()
}

/// Waits until so many messages are ready in the queue of this name behind the prefix.
async fn ready(rabbitmq: &Server, installation: &Installation, queue: &str, count: usize) {
    let queue = format!("{}.{queue}", installation.prefix);
    eventually(LIMIT, || async {
        let queues = rabbitmq.rabbitmqctl(&["list_queues", "--quiet", "name", "messages_ready"]).await;
        let found = queues.lines().find_map(|line| line.strip_prefix(&queue)?.trim().parse::<usize>().ok());
        if found == Some(count) { Ok(()) } else { Err(format!("{found:?} of {count} in {queue}")) }
    })
    .await;
}

/// Has the attendance worker's retry queues take about so many messages, and refuse more.
async fn limit(rabbitmq: &Server, installation: &Installation, messages: usize) {
    limit_each(rabbitmq, &format!("^{}[.]attendance[.]retry[.]", installation.prefix), messages).await;
}

/// Has the queues whose names match take about so many messages, and refuse more.
async fn limit_each(rabbitmq: &Server, pattern: &str, messages: usize) {
    let policy = json!({"max-length": messages, "overflow": "reject-publish"}).to_string();
    rabbitmq.rabbitmqctl(&["set_policy", "full", pattern, &policy, "--apply-to", "queues"]).await;
}

async fn bodies_in(installation: &Installation, queue: &str) -> Vec<String> {
    let taken = broker::take(installation, queue).await;
    taken.into_iter().map(|message| String::from_utf8(message.body).unwrap()).collect()
}

fn distinct(bodies: &[String]) -> BTreeSet<&String> {
    bodies.iter().collect()
}

fn subscription(settings: &Settings, prefetch: u16, stop: &CancellationToken) -> Subscription {
    Subscription {
        worker: WorkerName::Attendance,
        retry: settings.retry(WorkerName::Attendance).clone(),
        prefetch,
        in_hand: InHand::default(),
        obstacles: Obstacles::default(),
        stop: stop.clone(),
    }
}

/// Many deliveries are moved at once, every other one to a queue that refuses all but one: what is confirmed and what is not is known
/// of each, so that what was confirmed is there once, and what was refused is moved as soon as there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_moves_at_once_none_is_given_the_confirm_of_another() {
    const MOVES: usize = 8_000;
    let rabbitmq = Server::rabbitmq("refusing-broker").await;
    let mut installation = on(&rabbitmq).await;
    installation.set("attendance.retry", "1h");
    let settings = installation.load_settings();
    let queue = Queue::open(&settings.queue, "the tests").unwrap();
    publish_all(&publisher(&installation).await, (0..MOVES).map(|number| number.to_string())).await;

    let stop = CancellationToken::new();
    let subscription = subscription(&settings, MOVES.try_into().unwrap(), &stop);
    let Consumer { mut main, suspects, closed } = queue.consumer(subscription).await.unwrap();
    limit(&rabbitmq, &installation, 1).await;
    let mut deliveries = Vec::new();
    while deliveries.len() < MOVES {
        deliveries.extend(timeout(LIMIT, main.next_batch(MOVES, Duration::ZERO)).await.unwrap().unwrap());
    }
    for delivery in deliveries {
        if body(&delivery).parse::<usize>().unwrap() % 2 == 0 {
            delivery.bury(DeadKind::Permanent, "test", "it shall be dead");
        } else {
            delivery.retry(Duration::from_hours(1), "it shall wait");
        }
    }
    ready(&rabbitmq, &installation, "attendance.dead", MOVES / 2).await;
    // Not without a limit: RabbitMQ would go on to refuse whoever it has refused.
    limit(&rabbitmq, &installation, MOVES).await;
    stop.cancel();
    drop((main, suspects));
    timeout(LIMIT, closed).await.expect("the moves do not end").unwrap();

    for (queue, of) in [("attendance.dead", 0), ("attendance.retry.3600s", 1)] {
        let bodies = bodies_in(&installation, queue).await;
        assert_eq!((distinct(&bodies).len(), bodies.len()), (MOVES / 2, MOVES / 2), "in {queue}: lost, or there twice");
        assert!(bodies.iter().all(|body| body.parse::<usize>().unwrap() % 2 == of));
    }
    assert_eq!(broker::depths(&installation).await.unwrap(), BTreeMap::new());
}

/// RabbitMQ goes on to refuse a channel that it has refused for a full queue, also when the queue is full no more; and it may ask a
/// node that is gone whenever a channel publishes: no other channel would be treated so.
#[tokio::test]
async fn a_channel_that_is_never_confirmed_is_given_up_for_another() {
    let rabbitmq = Server::rabbitmq("never-confirmed").await;
    let installation = Installation::on(&rabbitmq.url, &services::shared_postgres()).await;
    let publisher = publisher(&installation).await;
    limit_each(&rabbitmq, &format!("^{}[.]attendance$", installation.prefix), 1).await;
    let published = AtomicUsize::new(0);
    eventually(LIMIT, || async {
        let first = published.fetch_add(20, Ordering::Relaxed);
        publish_all(&publisher, (first..first + 20).map(|number| number.to_string())).await;
        let told = publisher.readiness().unwrap();
        if told.contains("kept on disk, ") && !told.ends_with(" 0 so far") { Ok(()) } else { Err(told) }
    })
    .await;
    rabbitmq.rabbitmqctl(&["clear_policy", "full"]).await;
    eventually(LIMIT, || async {
        let told = publisher.readiness().unwrap();
        if told == "ready" { Ok(()) } else { Err(told) }
    })
    .await;
    publisher.close().await;
    let bodies = bodies_in(&installation, "attendance").await;
    assert_eq!(distinct(&bodies).len(), published.into_inner());
}

/// A worker asks for a suspect, and takes nothing from its lane before it has it: what lies there is of a connection that is gone.
#[tokio::test]
async fn a_lane_that_nobody_empties_keeps_no_suspect_waiting() {
    const PREFETCH: usize = 4;
    let rabbitmq = Server::rabbitmq("full-lane").await;
    let installation = on(&rabbitmq).await;
    let settings = installation.load_settings();
    publish_all(&publisher(&installation).await, (0..3 * PREFETCH).map(|number| number.to_string())).await;
    let (queue, stop) = (Queue::open(&settings.queue, "a worker of the tests").unwrap(), CancellationToken::new());
    let subscription = subscription(&settings, PREFETCH.try_into().unwrap(), &stop);
    let in_hand = subscription.in_hand.clone();
    let Consumer { mut main, mut suspects, closed } = queue.consumer(subscription).await.unwrap();
    eventually(LIMIT, || async {
        let unsettled = in_hand.unsettled();
        if unsettled == PREFETCH { Ok(()) } else { Err(format!("{unsettled} are in the lane")) }
    })
    .await;
    close_connections_of(&rabbitmq, "a worker of the tests").await;
    // What came back, and as many new ones besides those that lie in the lane.
    ready(&rabbitmq, &installation, "attendance.suspect", PREFETCH).await;
    eventually(LIMIT, || async {
        let unsettled = in_hand.unsettled();
        if unsettled > PREFETCH { Ok(()) } else { Err(format!("{unsettled} are in the lane")) }
    })
    .await;
    let suspect = timeout(Duration::from_secs(10), suspects.take()).await.expect("nobody answers").unwrap();
    suspect.ack().await;
    let fresh = timeout(LIMIT, main.next_batch(PREFETCH, Duration::from_secs(1))).await.unwrap().unwrap();
    assert!(fresh.iter().all(Delivery::is_ours), "what cannot be settled is worked on");
    assert_eq!(fresh.len(), PREFETCH);
    Delivery::ack_all(fresh).await;
    stop.cancel();
    drop((main, suspects));
    timeout(LIMIT, closed).await.expect("it does not end").unwrap();
}

/// The event that a recording is there.
fn recorded(id: usize) -> String {
    json!({"event": "recording_proceeded", "id": format!("EV_{id}"), "created_at": "1790000000",
           "room": {"sid": "sid", "room_id": "room"}, "recording_info": {"record_id": id.to_string()}})
    .to_string()
}

async fn close_connections_of(rabbitmq: &Server, program: &str) {
    let connections = rabbitmq.rabbitmqctl(&["list_connections", "--quiet", "pid", "client_properties"]).await;
    for line in connections.lines().filter(|line| line.contains(program)) {
        let pid = line.split('\t').next().unwrap();
        rabbitmq.rabbitmqctl(&["close_connection", pid, "an operator wants it"]).await;
    }
}

/// Waits until the worker has reported this state of itself.
async fn state(installation: &Installation, expected: &str) {
    use rollcall_shared::store::entity::worker_process;
    eventually(LIMIT, || async {
        let rows = worker_process::Entity::find().all(&installation.db).await.map_err(|error| error.to_string())?;
        if rows.iter().any(|row| row.state.contains(expected)) { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
}

/// Whoever asks for a suspect holds what other workers of the process wait for.
#[tokio::test]
async fn without_a_broker_there_is_no_suspect_to_wait_for() {
    let rabbitmq = Server::rabbitmq("no-suspects").await;
    let installation = on(&rabbitmq).await;
    let settings = installation.load_settings();
    publish_all(&publisher(&installation).await, (0..4).map(|number| number.to_string())).await;
    let (queue, stop) = (Queue::open(&settings.queue, "a worker of the tests").unwrap(), CancellationToken::new());
    let subscription = subscription(&settings, 2, &stop);
    let obstacles = subscription.obstacles.clone();
    let Consumer { main, mut suspects, closed } = queue.consumer(subscription).await.unwrap();
    close_connections_of(&rabbitmq, "a worker of the tests").await;
    assert!(timeout(LIMIT, suspects.wait()).await.expect("nothing came back"));
    rabbitmq.kill().await;
    eventually(LIMIT, || async { obstacles.check().err().map(|_| ()).ok_or("it has a session".to_owned()) }).await;
    let suspect = timeout(Duration::from_secs(10), suspects.take()).await.expect("it waits for a broker");
    assert!(suspect.is_none());
    stop.cancel();
    drop((main, suspects));
    timeout(LIMIT, closed).await.expect("the consumer does not end").unwrap();
}

#[tokio::test]
async fn a_pause_does_not_wait_for_a_move_whose_connection_is_gone() {
    const BAD: usize = 10;
    let rabbitmq = Server::rabbitmq("alarmed-and-paused").await;
    let installation = on(&rabbitmq).await;
    let bodies = (0..BAD).map(|number| join_of_nobody("alarmed", number).to_string());
    publish_all(&publisher(&installation).await, bodies).await;
    rabbitmq.rabbitmqctl(&["set_vm_memory_high_watermark", "0.00001"]).await;
    let worker = installation.worker("attendance").await;
    worker.logs("an event is dead").await;
    let blocked = eventually(LIMIT, || async {
        let connections =
            rabbitmq.rabbitmqctl(&["list_connections", "--quiet", "pid", "state", "client_properties"]).await;
        let of_worker =
            connections.lines().find(|line| line.contains("rollcall-worker") && line.contains("\tblocked\t"));
        of_worker.and_then(|line| line.split('\t').next().map(str::to_owned)).ok_or(connections)
    })
    .await;
    // That is why it settles nothing, and nobody is to think that it stands still.
    state(&installation, "the broker takes no messages").await;
    let paused = rollcall(&installation, &["pause", "attendance", "--timeout", "1s"]).await;
    assert!(paused.stderr.contains("has not finished"), "{paused:?}");
    state(&installation, "paused").await;
    rabbitmq.rabbitmqctl(&["close_connection", &blocked, "an operator wants it"]).await;
    // It has let go of them, and so they come back.
    ready(&rabbitmq, &installation, "attendance", BAD).await;

    rabbitmq.rabbitmqctl(&["set_vm_memory_high_watermark", "0.4"]).await;
    rollcall(&installation, &["resume", "attendance"]).await;
    eventually(LIMIT, || async {
        let depths = broker::depths(&installation).await?;
        let expected = BTreeMap::from([("attendance.dead".to_owned(), BAD as u32)]);
        if depths == expected { Ok(()) } else { Err(format!("{depths:?}")) }
    })
    .await;
    worker.stop().await;
}

/// Every message that a purge says it dropped is gone from the queue: what the broker holds back of its acknowledgements it drops when
/// the connection closes.
#[tokio::test]
async fn what_was_purged_beside_load_is_applied_by_nobody() {
    const WAITING: usize = 1_500;
    // The others' events would wait behind this load.
    let rabbitmq = Server::rabbitmq("purged-beside-load").await;
    let installation = on(&rabbitmq).await;
    let publisher = publisher(&installation).await;
    for round in 0..3 {
        publish_all(&publisher, (0..WAITING).map(|user| join("purged", &format!("{round}-{user}")).to_string())).await;
        let stop = CancellationToken::new();
        let load = tokio::spawn(others(publisher.clone(), stop.clone()));
        let arguments = ["purge", "attendance", "--reason", "a test", "--yes"];
        let purged = rollcall(&installation, &arguments).await;
        stop.cancel();
        load.await.unwrap();
        assert!(purged.success && purged.stdout.contains(&format!("Dropped {WAITING} of them")), "{purged:?}");
        let worker = installation.worker("attendance").await;
        eventually(LIMIT, || async {
            let depths = broker::depths(&installation).await?;
            if depths.keys().any(|queue| queue.starts_with("attendance")) { Err(format!("{depths:?}")) } else { Ok(()) }
        })
        .await;
        worker.stop().await;
        let came = live_session_interval::Entity::find().count(&installation.db).await.unwrap();
        assert_eq!(came, 0, "in round {round}, so many were applied after they had been dropped");
        let dropped = dead_letter::Entity::find().filter(dead_letter::Column::State.eq("dropped"));
        assert_eq!(dropped.count(&installation.db).await.unwrap(), ((round + 1) * WAITING) as u64);
    }
}

/// Whoever is told to stop ends once the broker has what was settled: nothing that was moved or stored is there a second time.
#[tokio::test]
async fn what_was_settled_before_a_stop_does_not_come_again() {
    const BAD: usize = 1_000;
    // The others' events would wait behind this load.
    let rabbitmq = Server::rabbitmq("stopped-beside-load").await;
    let installation = on(&rabbitmq).await;
    let publisher = publisher(&installation).await;
    publish_all(&publisher, (0..BAD).map(|number| join_of_nobody("class", number).to_string())).await;
    let stop = CancellationToken::new();
    let load = tokio::spawn(others(publisher, stop.clone()));
    let mut dead = 0;
    while dead < BAD {
        let worker = installation.worker("attendance").await;
        worker.logs("an event is dead").await;
        worker.stop().await;
        let depths = broker::depths(&installation).await.unwrap();
        let of = |queue| depths.get(queue).copied().unwrap_or_default() as usize;
        dead = of("attendance.dead");
        assert_eq!(of("attendance") + of("attendance.suspect") + dead, BAD, "moved, and here as well: {depths:?}");
    }
    let mut stored = 0;
    while stored < BAD {
        let worker = installation.spawn("rollcall-worker", &["dead-letters"]);
        worker.logs("stored dead letters").await;
        worker.stop().await;
        let depths = broker::depths(&installation).await.unwrap();
        let left = depths.get("attendance.dead").copied().unwrap_or_default() as usize;
        stored = dead_letter::Entity::find().count(&installation.db).await.unwrap() as usize;
        assert_eq!(left + stored, BAD, "stored, and here as well: {depths:?}");
    }
    stop.cancel();
    load.await.unwrap();
}

/// Events of another worker, so that the broker has something to do.
async fn others(publisher: Publisher, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let mut publishing = JoinSet::new();
        for id in 0..100 {
            let message = Message::new("main", "recording_proceeded", Bytes::from(recorded(id)));
            let publisher = publisher.clone();
            publishing.spawn(async move { publisher.publish(message, LIMIT).await.unwrap() });
        }
        publishing.join_all().await;
    }
}

/// With bindings and alternate gone, no queue takes an event: no 200 is given for it until one does.
#[tokio::test]
async fn what_no_queue_takes_is_answered_only_once_one_does() {
    let installation = Installation::new().await;
    let ingress = installation.ingress().await;
    let load = Load::start(&installation, ingress.address);
    load.goes_on(200, LIMIT).await;
    forget(&installation).await;
    load.goes_on(200, LIMIT).await;
    let mut accepted = load.stop().await;
    // While all is declared anew, there is an alternate again before there are bindings.
    for body in bodies_in(&installation, "unrouted").await {
        let event: serde_json::Value = serde_json::from_str(&body).unwrap();
        accepted.remove(event["participant"]["sid"].as_str().unwrap());
    }
    let _workers = installation.attendance_and_rooms(1).await;
    all_applied(&installation, &accepted, LIMIT).await;
    ingress.process.logs("declares is declared anew").await;
}

/// Deletes what would take an event that no binding wants, then the bindings that want joins.
async fn forget(installation: &Installation) {
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let named = |part: &str| format!("{}.{part}", installation.prefix);
    channel.queue_delete(named("unrouted").into(), QueueDeleteOptions::default()).await.unwrap();
    for worker in ["attendance", "rooms", "recordings"] {
        let (queue, exchange) = (named(worker).into(), named("events").into());
        channel.queue_unbind(queue, exchange, "*.participant_joined".into(), FieldTable::default()).await.unwrap();
    }
}

async fn is_not_ready_for(up: &Ingress, text: &str) {
    eventually(LIMIT, || async {
        let (status, says) = up.readiness().await;
        let fits = status == StatusCode::SERVICE_UNAVAILABLE && says.contains(text);
        if fits { Ok(()) } else { Err(format!("{status}: {says}")) }
    })
    .await;
}

async fn pause(installation: &Installation, pauses: bool) {
    let done = if pauses {
        rollcall(installation, &["pause", "attendance", "--timeout", "60s"]).await
    } else {
        rollcall(installation, &["resume", "attendance"]).await
    };
    assert!(done.success, "{done:?}");
}

fn times(process: &Process, text: &str) -> usize {
    process.log().matches(text).count()
}

/// Waits until all workers take what is theirs: until then a refusal is one of their start.
async fn takes_everything(up: &Ingress) {
    for worker in WorkerName::ALL {
        up.process.logs(&format!(r#""taking deliveries","worker":"{worker}""#)).await;
    }
    up.process.logs("taking dead letters").await;
}

#[tokio::test]
async fn permissions_that_are_taken_away_stop_a_worker_only_until_they_are_back() {
    let rabbitmq = Server::rabbitmq("forbidding-broker").await;
    let installation = on(&rabbitmq).await;
    let everything = ["set_permissions", "-p", "/", "guest", ".*", ".*", ".*"];
    let nothing = ["set_permissions", "-p", "/", "guest", "^$", "^$", "^$"];
    let up = installation.up().await;
    takes_everything(&up).await;
    pause(&installation, true).await;
    rabbitmq.rabbitmqctl(&nothing).await;
    pause(&installation, false).await;
    is_not_ready_for(&up, "the queue cannot be used").await;
    let told = "no deliveries can be taken until this is put right";
    up.process.logs(told).await;
    // It has been tried several times since, and the ingress takes events meanwhile.
    let sender = Sender::new(&installation, "main", up.address);
    sender.post(&join("forbidden", "a").to_string()).await;
    rabbitmq.rabbitmqctl(&everything).await;
    applied(&installation, 1, LIMIT).await;
    assert_eq!(times(&up.process, told), 1, "{}", up.process.log());
    up.process.stop().await;
}

#[tokio::test]
async fn a_connection_that_is_refused_in_mid_life_is_an_obstacle() {
    let rabbitmq = Server::rabbitmq("refusing-in-mid-life").await;
    let installation = on(&rabbitmq).await;
    let up = installation.up().await;
    takes_everything(&up).await;
    rabbitmq.rabbitmqctl(&["clear_permissions", "-p", "/", "guest"]).await;
    rabbitmq.rabbitmqctl(&["close_all_connections", "an operator wants it"]).await;
    is_not_ready_for(&up, "the broker refuses us").await;
    rabbitmq.rabbitmqctl(&["set_permissions", "-p", "/", "guest", ".*", ".*", ".*"]).await;
    Sender::new(&installation, "main", up.address).post(&join("refused", "a").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    up.process.stop().await;
}

/// What keeps a file's queue from being taken from: as too many open files do, or a disk without room.
#[tokio::test]
async fn a_queue_file_that_cannot_be_used_in_mid_life_is_an_obstacle() {
    let installation = Installation::on_files().await;
    let up = installation.up().await;
    takes_everything(&up).await;
    pause(&installation, true).await;
    let holders = installation.directory.join("data").join("queue.db-holders");
    let aside = holders.with_extension("aside");
    std::fs::rename(&holders, &aside).unwrap();
    std::fs::write(&holders, "no folder").unwrap();
    pause(&installation, false).await;
    is_not_ready_for(&up, "the queue cannot be used").await;
    std::fs::remove_file(&holders).unwrap();
    std::fs::rename(&aside, &holders).unwrap();
    Sender::new(&installation, "main", up.address).post(&join("back", "a").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    up.process.stop().await;
}

/// Of two hosts only one is there: whichever is tried first, everything goes on, and the other is named if that goes too.
#[tokio::test]
async fn of_several_hosts_any_that_lets_us_in_will_do() {
    let rabbitmq = Server::rabbitmq("one-of-two").await;
    let mut installation = on(&rabbitmq).await;
    // Where nothing listens.
    installation.broker_url = rabbitmq.url.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:");
    let ingress = installation.ingress().await;
    let _worker = installation.worker("attendance").await;
    Sender::new(&installation, "main", ingress.address).post(&join("cluster", "a").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    let doctor = rollcall(&installation, &["doctor"]).await;
    assert!(doctor.stdout.contains("at amqp://guest:***@127.0.0.1:1,127.0.0.1:"), "{doctor:?}");
    rabbitmq.stop().await;
    let doctor = rollcall(&installation, &["doctor"]).await;
    assert!(doctor.stdout.contains("127.0.0.1:1: "), "{doctor:?}");
    rabbitmq.start().await;
    Sender::new(&installation, "main", ingress.address).post(&join("cluster", "b").to_string()).await;
    applied(&installation, 2, LIMIT).await;
}
