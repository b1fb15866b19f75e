//! `rollcall status`, `pause`, `resume` and `purge`, as an operator types them.

use std::time::Duration;

use chrono::Utc;
use rollcall_ops::standin::{Endpoint, Fault, Recording, StandIn};
use rollcall_shared::store::entity::{dead_letter as letter, dead_letter_change as change, recording_lease as lease};
use rollcall_tests::command::{Done, Terminal, rollcall};
use rollcall_tests::installation::{Folder, Ingress, Installation, Process};
use rollcall_tests::joins::{applied, intervals, join, join_of_nobody};
use rollcall_tests::services::Server;
use rollcall_tests::webhooks::{Scheme, Sender};
use rollcall_tests::{broker, eventually};
use sea_orm::EntityTrait as _;
use sea_orm::sea_query::Expr;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

rollcall_tests::on_both_back_ends!(
    all_is_well_and_says_so,
    what_waits_for_nobody_is_told_loudly,
    a_paused_worker_rests_until_it_is_resumed,
    a_pause_says_what_it_waits_for,
    what_is_purged_is_dropped_and_can_be_restored,
    what_died_before_it_was_purged_comes_back_as_well,
    what_was_refused_is_told,
    a_recording_on_its_way_is_shown,
    what_is_watched_gives_the_terminal_back,
);

/// What `rollcall status --json` says, asked at this ingress.
async fn status(installation: &Installation, admin: &str) -> Value {
    let done = rollcall(installation, &["status", "--json", "--ingress", admin]).await;
    assert!(done.success, "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

fn worker<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["workers"].as_array().unwrap().iter().find(|worker| worker["worker"] == name).unwrap()
}

fn attention(status: &Value) -> String {
    let lines: Vec<_> = status["attention"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    lines.join("\n")
}

async fn all_is_well_and_says_so(installation: Installation) {
    let ingress = installation.ingress().await;
    let admin = ingress.admin.to_string();
    let mut processes = Vec::new();
    for name in ["attendance", "rooms", "recordings"] {
        processes.push(installation.worker(name).await);
    }
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    storing.logs("taking dead letters").await;
    let well = eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        if attention(&status).is_empty() { Ok(status) } else { Err(attention(&status)) }
    })
    .await;
    for name in ["attendance", "rooms", "recordings", "dead-letters"] {
        let worker = worker(&well, name);
        assert_eq!(worker["waiting"], 0, "{worker}");
        assert_eq!(worker["processes"][0]["state"], "taking", "{worker}");
    }
    let shown = rollcall(&installation, &["status", "--ingress", &admin]).await;
    assert!(shown.success && shown.stdout.contains("Nothing needs you."), "{shown:?}");

    // Rates: as many as came in, and as many as went out.
    let sender = Sender::new(&installation, "main", ingress.address);
    let posting = tokio::spawn(async move {
        for user in 0.. {
            sender.post(&join("class", &format!("user-{user}")).to_string()).await;
        }
    });
    eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        let worker = worker(&status, "attendance");
        let rates = (worker["rate_in"].as_f64(), worker["rate_out"].as_f64());
        if matches!(rates, (Some(1.0..), Some(1.0..))) { Ok(()) } else { Err(format!("{rates:?}")) }
    })
    .await;
    posting.abort();
    for process in processes.into_iter().chain([storing]) {
        process.stop().await;
    }
}

async fn what_waits_for_nobody_is_told_loudly(installation: Installation) {
    let ingress = installation.ingress().await;
    let admin = ingress.admin.to_string();
    let sender = Sender::new(&installation, "main", ingress.address);
    for user in ["a", "b"] {
        sender.post(&join("class", user).to_string()).await;
    }
    let before = status(&installation, &admin).await;
    assert!(
        attention(&before)
            .contains("No worker attendance runs; 2 events wait for it. Start one: rollcall-worker attendance"),
        "{before}"
    );
    assert!(attention(&before).contains("No worker dead-letters runs"), "{before}");
    assert_eq!(worker(&before, "attendance")["waiting"], 2);

    sender.post(&join_of_nobody("class", 0).to_string()).await;
    let process = installation.worker("attendance").await;
    let storing = installation.spawn("rollcall-worker", &["dead-letters"]);
    eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        let told = attention(&status);
        let is_told = told.contains("1 dead letter since yesterday: see `rollcall dlq groups`.")
            && !told.contains("No worker attendance");
        if is_told && worker(&status, "attendance")["dead"] == 1 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // One that was killed is told as such, until another one runs.
    process.kill().await;
    storing.stop().await;
    eventually(LIMIT, || async {
        let told = attention(&status(&installation, &admin).await);
        let is_told = told.contains("(attendance) has sent no heartbeat for")
            && told.contains("it was killed, or cannot reach the database")
            && !told.contains("No worker attendance");
        if is_told { Ok(()) } else { Err(told) }
    })
    .await;
    let another = installation.worker("attendance").await;
    eventually(LIMIT, || async {
        let told = attention(&status(&installation, &admin).await);
        if told.contains("(attendance)") { Err(told) } else { Ok(()) }
    })
    .await;
    another.stop().await;
}

async fn a_paused_worker_rests_until_it_is_resumed(installation: Installation) {
    let ingress = installation.ingress().await;
    let admin = ingress.admin.to_string();
    let sender = Sender::new(&installation, "main", ingress.address);
    let processes = [installation.worker("attendance").await, installation.worker("attendance").await];
    sender.post(&join("class", "before").to_string()).await;
    applied(&installation, 1, LIMIT).await;
    // Both have told that they run.
    eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        let count = worker(&status, "attendance")["processes"].as_array().unwrap().len();
        if count == 2 { Ok(()) } else { Err(format!("{count} processes")) }
    })
    .await;
    let paused = rollcall(&installation, &["pause", "attendance", "--as", "sara", "--reason", "the exam"]).await;
    assert!(paused.success, "{paused:?}");
    assert_eq!(paused.stdout, "attendance rests: all 2 of its processes have heard.\n");
    sender.post(&join("class", "meanwhile").to_string()).await;
    let status = status(&installation, &admin).await;
    assert_eq!(worker(&status, "attendance")["waiting"], 1);
    let loud = "attendance is paused by sara (the exam); 1 event waits for it. To go on: rollcall resume attendance";
    assert!(attention(&status).contains(loud), "{status}");
    let again = rollcall(&installation, &["pause", "attendance", "--as", "omid"]).await;
    assert!(again.success && again.stdout.contains("attendance was paused already, by sara at "), "{again:?}");
    assert!(again.stdout.contains(" (the exam); that is left as it is."), "{again:?}");
    let again = json_of(rollcall(&installation, &["pause", "attendance", "--json"]).await);
    assert_eq!((&again["changed"], &again["ready"], &again["pause"]["by"]), (&json!(false), &json!(2), &json!("sara")));
    assert_eq!(again["waiting_for"], json!({"processes": [], "recordings": 0}));
    let unreasonable = rollcall(&installation, &["pause", "rooms", "--reason", " "]).await;
    assert!(!unreasonable.success && unreasonable.stderr.contains("say why"), "{unreasonable:?}");
    assert_eq!(intervals(&installation).await, 1);

    let resumed = rollcall(&installation, &["resume", "attendance"]).await;
    assert!(resumed.success && resumed.stdout.contains("attendance goes on"), "{resumed:?}");
    assert!(resumed.stdout.contains("The pause is over: by sara at ") && resumed.stdout.contains(" (the exam)."));
    applied(&installation, 2, LIMIT).await;
    let again = rollcall(&installation, &["resume", "attendance"]).await;
    assert_eq!((again.success, again.stdout.as_str()), (true, "attendance was not paused.\n"));
    let again = json_of(rollcall(&installation, &["resume", "attendance", "--json"]).await);
    assert_eq!((&again["changed"], &again["ready"], &again["pause"]), (&json!(false), &json!(2), &json!(null)));
    let unknown = rollcall(&installation, &["pause", "attendence"]).await;
    assert!(!unknown.success && unknown.stderr.contains("attendance, rooms, recordings, dead-letters"), "{unknown:?}");
    for process in processes {
        process.stop().await;
    }
}

/// What a command says with --json.
fn json_of(done: Done) -> Value {
    assert!(done.success, "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

/// A worker that has a recording in hand which nobody gives it the end of, and its ingress.
async fn fetching_for_ever(installation: &mut Installation) -> (StandIn, Ingress, Process) {
    let server = StandIn::start("key", &"secret".into()).await.unwrap();
    installation.server("main", "key", "secret", server.url().as_str());
    let file = installation.directory.join("recording.mp4");
    std::fs::write(&file, vec![7; 100_000]).unwrap();
    server.add_recording(Recording::new("held", "room", "sid", &file));
    server.script(Endpoint::Download, [Fault::Held]);
    let ingress = installation.ingress().await;
    let sender = Sender::new(installation, "main", ingress.address);
    let body = json!({"event": "recording_proceeded", "id": "EV_1", "created_at": "1790000000",
                      "room": {"sid": "sid", "room_id": "room"}, "recording_info": {"record_id": "held"}});
    let worker = installation.worker("recordings").await;
    sender.post(&body.to_string()).await;
    (server, ingress, worker)
}

async fn a_pause_says_what_it_waits_for(mut installation: Installation) {
    // So that its delivery is settled long before it is fetched.
    installation.set("recordings.hold", "1s");
    let (_server, ingress, worker) = fetching_for_ever(&mut installation).await;
    let admin = ingress.admin.to_string();
    eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        if status["recordings"]["in_progress"][0].is_object() { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    let impatient = rollcall(&installation, &["pause", "recordings", "--timeout", "5s"]).await;
    assert!(!impatient.success && impatient.stdout.is_empty(), "{impatient:?}");
    assert!(impatient.stderr.contains("Waiting up to 5s for "), "{impatient:?}");
    let last = impatient.stderr.lines().last().unwrap();
    assert!(last.starts_with("recordings has not finished what it has, and will rest then: "), "{last}");
    assert!(last.contains("1 recording that is being fetched"), "{last}");
    worker.stop().await;
}

async fn what_is_purged_is_dropped_and_can_be_restored(mut installation: Installation) {
    installation.set("sessions.unknown", "reject");
    installation.set("attendance.retry", "200ms,1s,2s");
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    for user in 0..30 {
        sender.post(&join("class", &format!("user-{user}")).to_string()).await;
    }
    let nothing = rollcall(&installation, &["purge", "rooms", "--reason", "x"]).await;
    assert_eq!((nothing.success, nothing.stdout.as_str()), (true, "Nothing waits for rooms.\n"));
    let unasked = rollcall(&installation, &["purge", "attendance", "--reason", "nobody needs them"]).await;
    assert!(!unasked.success && unasked.stderr.contains("pass --yes"), "{unasked:?}");
    assert_eq!(broker::depths(&installation).await.unwrap()["attendance"], 30);

    let arguments = ["purge", "attendance", "--reason", "nobody needs them", "--yes", "--as", "sara"];
    let purged = rollcall(&installation, &arguments).await;
    assert!(purged.success && purged.stdout.contains("Dropped 30 of them"), "{purged:?}");
    assert!(broker::depths(&installation).await.unwrap().is_empty());
    let letters = letter::Entity::find().all(&installation.db).await.unwrap();
    assert!(letters.len() == 30 && letters.iter().all(|row| row.state == "dropped" && row.kind == "purged"));
    let changes = change::Entity::find().all(&installation.db).await.unwrap();
    assert_eq!((changes.len(), changes[0].changed_by.as_str(), changes[0].change.as_str()), (30, "sara", "purged"));

    // And all of it back, as it says itself.
    let run = purged.stdout.split_once("(run ").unwrap().1.split_once(')').unwrap().0;
    for action in ["list", "restore", "replay"] {
        assert!(purged.stdout.contains(&format!("rollcall dlq {action} --run {run}\n")), "{purged:?}");
    }
    let listed = json_of(rollcall(&installation, &["dlq", "list", "--run", run, "--json"]).await);
    assert_eq!(listed["dead_letters"].as_array().map(Vec::len), Some(30), "{listed}");
    have_back(&installation, run).await;
    installation.set("sessions.unknown", "create");
    let worker = installation.worker("attendance").await;
    applied(&installation, 30, LIMIT).await;
    worker.stop().await;
    let letters = letter::Entity::find().all(&installation.db).await.unwrap();
    assert!(letters.iter().all(|row| row.state == "applied" && row.replays == 1));
}

/// Sends what a purge dropped back to its worker.
async fn have_back(installation: &Installation, run: &str) {
    for action in [["dlq", "restore"].as_slice(), &["dlq", "replay", "--yes"]] {
        let done = rollcall(installation, &[action, &["--run", run]].concat()).await;
        assert!(done.success, "{done:?}");
    }
}

async fn what_died_before_it_was_purged_comes_back_as_well(mut installation: Installation) {
    installation.set("sessions.unknown", "reject");
    installation.set("attendance.retry", "100ms");
    let ingress = installation.ingress().await;
    let sender = Sender::new(&installation, "main", ingress.address);
    sender.post(&join("class", "a").to_string()).await;
    let processes = [installation.worker("attendance").await, installation.spawn("rollcall-worker", &["dead-letters"])];
    let died = || async { letter::Entity::find().all(&installation.db).await.unwrap() };
    eventually(LIMIT, || async { if died().await.len() == 1 { Ok(()) } else { Err("it lives".into()) } }).await;
    for process in processes {
        process.stop().await;
    }
    // Back in the queue, and with it one that never died.
    let replayed = rollcall(&installation, &["dlq", "replay", "--all"]).await;
    assert!(replayed.success, "{replayed:?}");
    sender.post(&join("class", "b").to_string()).await;
    let purged = json_of(rollcall(&installation, &["purge", "attendance", "--reason", "no", "--yes", "--json"]).await);
    assert_eq!((&purged["worker"], &purged["dropped"]), (&json!("attendance"), &json!(2)));
    let rows = died().await;
    assert!(rows.len() == 2 && rows.iter().all(|row| row.state == "dropped"), "{rows:?}");

    have_back(&installation, purged["run"].as_str().unwrap()).await;
    installation.set("sessions.unknown", "create");
    let worker = installation.worker("attendance").await;
    applied(&installation, 2, LIMIT).await;
    worker.stop().await;
    let unreasonable = rollcall(&installation, &["purge", "rooms", "--reason", ""]).await;
    assert!(!unreasonable.success && unreasonable.stderr.contains("say why"), "{unreasonable:?}");
    let nothing = json_of(rollcall(&installation, &["purge", "rooms", "--reason", "x", "--json"]).await);
    assert_eq!(nothing, json!({"worker": "rooms", "dropped": 0, "run": null}));
}

async fn what_was_refused_is_told(installation: Installation) {
    let ingress = installation.ingress().await;
    let admin = ingress.admin.to_string();
    let mut keys = installation.keys("main").clone();
    keys.secret = "guessed".into();
    let stranger = rollcall_tests::webhooks::Sender::with(keys, ingress.address);
    stranger.try_post(&join("class", "a").to_string(), Scheme::Token).await.unwrap();
    let status = status(&installation, &admin).await;
    assert_eq!(status["ingresses"][0]["rejected"], json!({"wrong_secret": 1}));
    assert_eq!(status["ingresses"][0]["rejections"][0]["reason"], "wrong_secret");
    assert!(attention(&status).contains("refused a webhook"), "{status}");
    assert!(attention(&status).contains("wrong secret"), "{status}");
}

async fn a_recording_on_its_way_is_shown(mut installation: Installation) {
    let (_server, ingress, worker) = fetching_for_ever(&mut installation).await;
    let admin = ingress.admin.to_string();
    eventually(LIMIT, || async {
        let status = status(&installation, &admin).await;
        let recording = &status["recordings"]["in_progress"][0];
        let is_shown = recording["record_id"] == "held" && recording["source"] == "main";
        if is_shown { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    worker.kill().await;
    // Nobody renews its lease any more, and at some time it has run out.
    let past = lease::Entity::update_many().col_expr(lease::Column::ExpiresAt, Expr::value(Utc::now()));
    past.exec(&installation.db).await.unwrap();
    let status = status(&installation, &admin).await;
    assert_eq!(status["recordings"], json!({"in_progress": [], "waiting": 1}));
}

async fn what_is_watched_gives_the_terminal_back(installation: Installation) {
    let mut terminal = Terminal::open(&installation, 10, 80, &["status", "--watch", "--every", "200ms"]);
    // Twice: it is shown in the place of the last time.
    terminal.shows("Rollcall, ", 2).await;
    let shown = terminal.output();
    assert!(shown.contains("\x1b[?1049h\x1b[?25l"), "{shown:?}");
    // No process runs: what needs a person is at the top, and what has no room is counted.
    assert!(shown.contains("No worker attendance runs") && shown.contains(" lines more"), "{shown:?}");
    let page = shown.split("\x1b[H").nth(1).unwrap();
    assert!(page.matches("\r\n").count() < 10, "{page:?}");
    terminal.types(b"\x03").await;
    let (status, output) = terminal.closed().await;
    assert_eq!(status.code(), Some(0), "{output:?}");
    assert!(output.contains("\x1b[?25h\x1b[?1049l"), "{output:?}");

    // Into a pipe: pages, and nothing that only a terminal understands.
    let watching = installation.spawn("rollcall", &["status", "--watch", "--every", "200ms"]);
    eventually(LIMIT, || async {
        let output = watching.output();
        if output.matches("Rollcall, ").count() >= 2 { Ok(()) } else { Err(output) }
    })
    .await;
    assert!(!watching.output().contains('\x1b'));
    watching.stop().await;
    let watching = installation.spawn("rollcall", &["status", "--watch", "--every", "200ms", "--json"]);
    eventually(LIMIT, || async {
        let output = watching.output();
        if output.lines().count() >= 3 { Ok(()) } else { Err(output) }
    })
    .await;
    let output = watching.output();
    let snapshot: Value = serde_json::from_str(output.lines().next().unwrap()).unwrap();
    assert!(attention(&snapshot).contains("No worker attendance runs"), "{snapshot}");
    watching.stop().await;
}

#[tokio::test]
async fn a_look_makes_no_files() {
    let folder = Folder::new();
    let mut status = folder.spawn("rollcall", &["status", "--json"]);
    assert!(status.ended().await.success());
    let status: Value = serde_json::from_str(&status.output()).unwrap();
    let told = attention(&status);
    assert!(told.contains("data/queue.db is not there yet: rollcall up makes it"), "{told}");
    assert!(!told.contains("No worker"), "{told}");
    assert!(!folder.0.join("data").exists());
}

#[tokio::test]
async fn what_does_not_answer_hides_nothing_else() {
    let (broker, postgres) = (Server::rabbitmq("status-away").await, Server::postgres("status-database-away").await);
    let installation = Installation::on(&broker.url, &postgres.url).await;
    let process = installation.worker("attendance").await;
    broker.stop().await;
    let away = eventually(LIMIT, || async {
        // Nobody listens on port 1.
        let status = status(&installation, "127.0.0.1:1").await;
        let hindered = attention(&status).contains("cannot work: no connection to the broker");
        if hindered { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    let told = attention(&away);
    assert!(told.contains("Cannot look everywhere: the queue: the broker at amqp://guest:***@"), "{told}");
    // What waits, nobody knows.
    assert!(told.contains("No worker rooms runs. Start one: rollcall-worker rooms"), "{told}");
    assert!(worker(&away, "rooms").get("waiting").is_none());
    assert_eq!(away["ingresses"][0]["address"], "127.0.0.1:1");
    assert!(away["ingresses"][0]["unreachable"].is_string());

    // And who works, if the database is away as well.
    postgres.stop().await;
    let away = status(&installation, "127.0.0.1:1").await;
    let told = attention(&away);
    assert!(told.contains("Cannot look everywhere: the database: ") && !told.contains("No worker"), "{told}");
    for worker in away["workers"].as_array().unwrap() {
        for unknown in ["processes", "in_flight", "dead", "replaying", "rate_out"] {
            assert!(worker[unknown].is_null(), "{unknown} of {worker}");
        }
    }
    let shown = rollcall(&installation, &["status", "--ingress", "127.0.0.1:1"]).await;
    let line = shown.stdout.lines().find(|line| line.starts_with("attendance")).unwrap();
    assert_eq!(line.split_whitespace().skip(1).collect::<String>(), "–––––––––", "{shown:?}");
    process.kill().await;
}
