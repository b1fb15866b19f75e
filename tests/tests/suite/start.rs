//! Programs that cannot do their work say what is wrong and how to put it right, and no password.

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_shared::signature::sign_hmac;
use rollcall_tests::installation::{Folder, Installation, Process};

fn ingress_and_worker(installation: &Installation) -> [Process; 2] {
    [installation.spawn("rollcall-ingress", &[]), installation.spawn("rollcall-worker", &["rooms"])]
}

/// It ends badly, saying all of `texts` in its log.
async fn fails_with(mut process: Process, texts: &[&str]) {
    let status = process.ended().await;
    let log = process.log();
    assert!(!status.success(), "{log}");
    for text in texts {
        assert!(log.contains(text), "no {text:?} in {log}");
    }
    assert!(!log.contains("hunter2"), "{log}");
}

/// An ingress, a worker, and both in one, in an environment.
fn every_program(installation: &Installation, environment: &str) -> [Process; 3] {
    let spawn = |program, arguments: &[&str]| installation.spawn_by(&["env", environment], program, arguments);
    [spawn("rollcall-ingress", &[]), spawn("rollcall-worker", &["rooms"]), spawn("rollcall", &["up"])]
}

#[tokio::test]
async fn a_secret_that_everybody_knows_stops_the_start_and_is_named() {
    let mut installation = Installation::on_files().await;
    // What Compose makes of `${PREVIOUS:-}`.
    for process in every_program(&installation, "ROLLCALL__PLUGNMEET__MAIN__PREVIOUS_SECRET=") {
        fails_with(process, &["setting plugnmeet.main.previous_secret", "empty", "is left out"]).await;
    }
    for (secret, what) in [("", "empty"), (" ", "nothing but white space or NULs"), ("<your-secret>", "a placeholder")]
    {
        installation.server("main", "key", secret, "http://127.0.0.1:1");
        fails_with(installation.spawn("rollcall-ingress", &[]), &["setting plugnmeet.main.api_secret", what]).await;
        installation.rotate("main", "one that nobody can guess");
        let process = installation.spawn("rollcall-ingress", &[]);
        fails_with(process, &["setting plugnmeet.main.previous_secret", what]).await;
    }
}

#[tokio::test]
async fn what_is_empty_and_needs_a_value_stops_the_start_and_is_named() {
    let installation = Installation::on_files().await;
    for setting in
        ["INGRESS__SPOOL__PATH", "RECORDINGS__WORK_DIR", "RECORDINGS__FFMPEG", "RECORDINGS__FFPROBE", "LOG__FILTER"]
    {
        let name = setting.to_lowercase().replace("__", ".");
        let process = installation.spawn_by(&["env", &format!("ROLLCALL__{setting}=")], "rollcall-ingress", &[]);
        fails_with(process, &[&format!("setting {name} is ")]).await;
    }
    // SQLite keeps a database of this name in memory, for each connection another.
    for (setting, name) in [("QUEUE__URL", "queue.url"), ("DATABASE__URL", "database.url")] {
        let environment = format!("ROLLCALL__{setting}=sqlite://:memory:");
        let process = installation.spawn_by(&["env", &environment], "rollcall-worker", &["rooms"]);
        fails_with(process, &[&format!("setting {name}: ")]).await;
    }
}

#[tokio::test]
async fn weak_secrets_and_plain_text_to_other_machines_are_warned_of() {
    let mut installation = Installation::on_files().await;
    installation.server("trial", "key", "zumyyYWqv7KR2kUqvYdq4z4sXg7XTBD2ljT6", "http://127.0.0.1:1");
    installation.server("main", "key", "a fifteen bytes", "http://plugnmeet.example.org");
    installation.server("other", "key", "and a longer one", "http://127.0.0.1:1");
    let ingress = installation.ingress().await;
    let warned = ingress.process.log();
    for text in [
        "setting plugnmeet.main.api_secret: it is shorter than 16 bytes",
        "setting plugnmeet.trial.api_secret: it is that of PlugNMeet's sample configuration",
        "setting plugnmeet.main.url: what goes to",
    ] {
        assert!(warned.contains(text), "no {text:?} in {warned}");
    }
    assert!(
        !warned.contains("plugnmeet.other") && !warned.contains("fifteen") && !warned.contains("zumyy"),
        "{warned}"
    );
    ingress.process.stop().await;
}

#[tokio::test]
async fn secrets_may_stand_in_files_of_their_own() {
    let installation = Installation::on_files().await;
    let file = installation.directory.join("api_secret");
    std::fs::write(&file, "one that nobody can guess\n").unwrap();
    let url = installation.directory.join("queue_url");
    std::fs::write(&url, &installation.broker_url).unwrap();
    let settings = installation.settings();
    let kept = |line: &&str| !line.starts_with("api_secret") && !line.starts_with("queue.url");
    let settings = settings.lines().filter(kept).collect::<Vec<_>>().join("\n");
    let settings = format!("queue.url_file = {url:?}\n{settings}\napi_secret_file = {file:?}\n");
    let folder = Folder::new();
    folder.settings(&settings);
    let ingress = folder.spawn("rollcall-ingress", &[]).listens().await;
    let body = br#"{"event":"room_started","room":{"identity":"r"}}"#;
    let hmac = sign_hmac(&"one that nobody can guess".into(), body);
    rollcall_shared::tls::use_ring();
    let posted = reqwest::Client::new().post(format!("http://{}/webhooks/plugnmeet", ingress.address));
    assert_eq!(posted.header("Hash-Token", hmac).body(&body[..]).send().await.unwrap().status(), 200);
    ingress.process.stop().await;

    // Both, or one that is not there or has nothing in it: which shall count?
    folder.settings(&format!("{settings}api_secret = 'hunter2'\n"));
    let texts = ["setting plugnmeet.main.api_secret_file", "not both"];
    fails_with(folder.spawn("rollcall-ingress", &[]), &texts).await;
    folder.settings(&settings);
    std::fs::write(&file, "\n").unwrap();
    fails_with(folder.spawn("rollcall-ingress", &[]), &["setting plugnmeet.main.api_secret is", "empty"]).await;
    std::fs::remove_file(&file).unwrap();
    let texts = ["setting plugnmeet.main.api_secret_file", "cannot be read"];
    fails_with(folder.spawn("rollcall-ingress", &[]), &texts).await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let installation = Installation::new().await;
    let connection = Connection::connect(&installation.broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{}.rooms", installation.prefix);
    // A classic one.
    let declared = channel.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default());
    declared.await.unwrap();
    for process in ingress_and_worker(&installation) {
        fails_with(process, &[&format!("queue {queue} exists on the broker with other arguments"), "delete it"]).await;
    }
}

#[tokio::test]
async fn a_broker_that_refuses_the_password_is_named_without_it() {
    let mut installation = Installation::new().await;
    installation.broker_url = installation.broker_url.replace(":guest@", ":hunter2@");
    for process in ingress_and_worker(&installation) {
        fails_with(process, &["refuses the connection", "guest:***@", "queue.url"]).await;
    }
}

#[tokio::test]
async fn tls_to_a_broker_that_speaks_none_is_said_and_tried_again() {
    let mut installation = Installation::new().await;
    installation.broker_url = installation.broker_url.replace("amqp://guest:guest@", "amqps://guest:hunter2@");
    for process in ingress_and_worker(&installation) {
        process.logs("the broker at amqps://guest:***@").await;
        process.logs("cannot be used now").await;
        assert!(!process.log().contains("hunter2"));
        process.stop().await;
    }
}

#[tokio::test]
async fn a_database_that_is_not_migrated_stops_a_worker() {
    let installation = Installation::new().await;
    Migrator::down(&installation.db, None).await.unwrap();
    for worker in ["attendance", "rooms", "recordings"] {
        fails_with(installation.spawn("rollcall-worker", &[worker]), &["rollcall migrate"]).await;
    }
}
