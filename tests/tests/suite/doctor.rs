//! `rollcall doctor` finds what is wrong, names it and the way out, tells no password, and is content where all is well.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use lapin::options::{BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_ops::standin::{Endpoint, Fault, StandIn};
use rollcall_tests::installation::{Folder, Ingress, Installation, Process};
use rollcall_tests::{eventually, services};
use sea_orm::ConnectionTrait as _;
use serde::Deserialize;
use tokio::net::TcpListener;

rollcall_tests::on_both_back_ends!(
    where_all_is_well_every_line_says_so,
    a_wrong_key_and_a_wrong_secret_are_told_apart,
    a_clock_that_is_off_is_told_by_how_much_and_which_way,
    what_answers_in_a_servers_place_is_told_apart,
    a_database_that_is_not_migrated_is_named,
    a_database_of_a_newer_version_is_named,
    a_machine_without_ffmpeg_and_a_storage_that_cannot_be_written_are_named,
    an_ingress_that_is_away_or_runs_on_other_settings_is_named,
);

/// As long as they should be.
const SECRET: &str = "a secret of this server's";
const OTHER_SECRET: &str = "a secret of the other server's";

/// One line of the doctor's.
#[derive(Debug, Deserialize)]
struct Finding {
    check: String,
    status: String,
    found: String,
    todo: Option<String>,
}

/// What the doctor said, and with which exit status.
#[derive(Debug)]
struct Visit {
    findings: Vec<Finding>,
    code: i32,
}

impl Visit {
    async fn read(mut doctor: Process) -> Self {
        let code = doctor.ended().await.code().unwrap();
        let output = doctor.output();
        assert!(!(output.clone() + &doctor.log()).contains("hunter2"), "{output}");
        let findings =
            serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output} {}", doctor.log()));
        Self { findings, code }
    }

    /// The lines of a check.
    fn of<'a>(&'a self, check: &'a str) -> impl Iterator<Item = &'a Finding> {
        self.findings.iter().filter(move |finding| finding.check == check)
    }

    /// A check has this status, and says all of `texts`.
    #[track_caller]
    fn says(&self, check: &str, status: &str, texts: &[&str]) {
        let says = |finding: &Finding| {
            let line = format!("{} {}", finding.found, finding.todo.as_deref().unwrap_or_default());
            finding.status == status && texts.iter().all(|text| line.contains(text))
        };
        assert!(self.of(check).any(says), "no {check} {status} with {texts:?} in {self:#?}");
    }

    /// A check failed, saying what is wrong, and the exit status says that something did.
    #[track_caller]
    fn fails(&self, check: &str, texts: &[&str]) {
        self.says(check, "failed", texts);
        assert_eq!(self.code, 1, "{self:#?}");
    }

    /// Every check but these is well.
    #[track_caller]
    fn nothing_else_is_wrong(&self, but: &[&str]) {
        let wrong = |finding: &&Finding| finding.status != "ok" && !but.contains(&finding.check.as_str());
        assert!(!self.findings.iter().any(|finding| wrong(&finding)), "{self:#?}");
    }
}

fn address(ingress: &Ingress) -> String {
    format!("http://{}/webhooks/plugnmeet", ingress.address)
}

async fn doctor(installation: &Installation, arguments: &[&str]) -> Visit {
    Visit::read(installation.spawn("rollcall", &[&["doctor", "--json"], arguments].concat())).await
}

async fn server(installation: &mut Installation) -> StandIn {
    let server = StandIn::start("key", &SECRET.into()).await.unwrap();
    installation.server("main", "key", SECRET, server.url().as_str());
    server
}

async fn where_all_is_well_every_line_says_so(mut installation: Installation) {
    let _server = server(&mut installation).await;
    let other = StandIn::start("key", &OTHER_SECRET.into()).await.unwrap();
    installation.server("other", "key", OTHER_SECRET, other.url().as_str());
    std::fs::create_dir_all(installation.media()).unwrap();
    let up = installation.up().await;
    let url = address(&up);
    // The workers begin when the ingress has.
    let visit = eventually(Duration::from_secs(30), || async {
        let visit = doctor(&installation, &["--url", &url]).await;
        if visit.findings.iter().all(|finding| finding.status == "ok") { Ok(visit) } else { Err(format!("{visit:#?}")) }
    })
    .await;
    assert_eq!(visit.code, 0);
    let checks: Vec<_> = visit.findings.iter().map(|finding| finding.check.as_str()).collect();
    let of_queue: &[&str] =
        if installation.is_on_files() { &["queue"] } else { &["queue", "queues", "unrouted", "consumers"] };
    let servers = [
        "plugnmeet main",
        "clock of main",
        "plugnmeet other",
        "clock of other",
        "webhook main",
        "signatures main",
        "webhook other",
        "signatures other",
    ];
    assert_eq!(
        checks,
        [
            &["settings", "files"],
            of_queue,
            &["database", "dead letters", "keeping", "storage", "ffprobe", "ffmpeg"],
            servers.as_slice()
        ]
        .concat()
    );
    // Nothing is left in the storage, and nothing was queued.
    let left: Vec<_> =
        std::fs::read_dir(installation.media()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == ".incoming"), "{left:?}");
    assert_eq!(up.metric("rollcall_ingress_accepted_bytes_total").await.unwrap_or_default(), 0.0);

    // For people: one line each.
    let mut doctor = installation.spawn("rollcall", &["doctor", "--url", &url]);
    assert!(doctor.ended().await.success());
    let output = doctor.output();
    assert_eq!(output.lines().count(), checks.len(), "{output}");
    assert!(output.lines().all(|line| line.starts_with("✓ ")), "{output}");
    up.process.stop().await;
}

async fn a_wrong_key_and_a_wrong_secret_are_told_apart(mut installation: Installation) {
    let server = server(&mut installation).await;
    let url = server.url();
    installation.server("main", "key", "hunter2", url.as_str());
    let visit = doctor(&installation, &[]).await;
    visit.fails("plugnmeet main", &["Failed to verify", "plugnmeet.main.api_secret to client.secret"]);
    visit.says("clock of main", "ok", &[]);

    installation.server("main", "nobody", SECRET, url.as_str());
    doctor(&installation, &[])
        .await
        .fails("plugnmeet main", &["Invalid API key", "plugnmeet.main.api_key to client.api_key"]);

    // While a secret is changed: the server has still the old one.
    installation.server("main", "key", SECRET, url.as_str());
    installation.rotate("main", "hunter2");
    let visit = doctor(&installation, &[]).await;
    visit.says("plugnmeet main", "warning", &["previous_secret only"]);

    server.be_old(true);
    installation.server("main", "key", "hunter2", url.as_str());
    doctor(&installation, &[]).await.fails("plugnmeet main", &["401", "api_key and .api_secret"]);
}

async fn a_clock_that_is_off_is_told_by_how_much_and_which_way(mut installation: Installation) {
    let server = server(&mut installation).await;
    for (ahead, way) in [(10, "ahead of"), (-10, "behind")] {
        server.clock_ahead(TimeDelta::minutes(ahead));
        let visit = doctor(&installation, &[]).await;
        visit.says("plugnmeet main", "ok", &[]);
        let minutes = |finding: &Finding| finding.found.contains("it is 10m") || finding.found.contains("it is 9m 59s");
        assert!(visit.of("clock of main").all(minutes), "{visit:#?}");
        visit.fails("clock of main", &[way, "its webhooks are refused", "NTP"]);
    }
    server.clock_ahead(TimeDelta::seconds(30));
    doctor(&installation, &[]).await.says("clock of main", "warning", &["ahead of"]);
    // Both are wrong, and both are said.
    server.clock_ahead(TimeDelta::minutes(10));
    installation.server("main", "key", "hunter2", server.url().as_str());
    let visit = doctor(&installation, &[]).await;
    visit.fails("clock of main", &["10m"]);
    visit.fails("plugnmeet main", &["Failed to verify"]);
}

async fn what_answers_in_a_servers_place_is_told_apart(mut installation: Installation) {
    let server = server(&mut installation).await;
    for (fault, expected) in [
        (Fault::Html, "something else answers there"),
        (Fault::status(502), "log"),
        (Fault::RedirectTo("https://hunter2.example.org/".into()), "it redirects"),
        (Fault::Disconnect, "no answer"),
        (Fault::too_many_requests(Duration::from_secs(9)), "try again later"),
    ] {
        server.script(Endpoint::IsRoomActive, [fault]);
        doctor(&installation, &[]).await.fails("plugnmeet main", &[expected]);
    }
    let path = format!("{}elsewhere/", server.url());
    installation.server("main", "key", SECRET, &path);
    doctor(&installation, &[]).await.fails("plugnmeet main", &["404", "plugnmeet.main.url"]);
}

async fn a_database_that_is_not_migrated_is_named(mut installation: Installation) {
    let _server = server(&mut installation).await;
    Migrator::down(&installation.db, None).await.unwrap();
    let visit = doctor(&installation, &[]).await;
    visit.fails("database", &["not migrated", "m20261122_000001_first", "rollcall migrate up"]);
    // It was only looked at.
    assert_eq!(
        Migrator::get_pending_migrations_read_only(&installation.db).await.unwrap().len(),
        Migrator::migrations().len()
    );
}

async fn a_database_of_a_newer_version_is_named(installation: Installation) {
    let newer = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29990101_000001_newer', 0)";
    installation.db.execute_unprepared(newer).await.unwrap();
    doctor(&installation, &[]).await.fails("database", &["newer Rollcall", "install"]);
}

async fn a_machine_without_ffmpeg_and_a_storage_that_cannot_be_written_are_named(mut installation: Installation) {
    installation.set("recordings.ffmpeg", "/nowhere/ffmpeg");
    installation.set("recordings.ffprobe", "/nowhere/ffprobe");
    // Where its folder should be. (Of permissions, root knows none.)
    std::fs::write(installation.media(), "a file").unwrap();
    let visit = doctor(&installation, &[]).await;
    visit.fails("ffmpeg", &["/nowhere/ffmpeg", "recordings.ffmpeg", "install"]);
    visit.fails("ffprobe", &["/nowhere/ffprobe", "recordings.ffprobe", "no recording is archived"]);
    visit.fails("storage", &["storage.url", "File exists"]);

    // What root looks at is still the worker's.
    std::fs::remove_file(installation.media()).unwrap();
    std::fs::create_dir_all(installation.media()).unwrap();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(installation.media(), Some(65_534), Some(65_534)).unwrap();
    }
    doctor(&installation, &[]).await.says("storage", "ok", &["wrote, read and deleted"]);
    let owner = |path: &Path| path.metadata().unwrap().uid();
    assert_eq!(owner(&installation.media().join(".incoming")), owner(&installation.media()));

    let work = installation.directory.join("work");
    std::fs::write(&work, "a file").unwrap();
    installation.set("recordings.work_dir", work.display());
    doctor(&installation, &[]).await.fails("storage", &["recordings.work_dir"]);
}

async fn an_ingress_that_is_away_or_runs_on_other_settings_is_named(mut installation: Installation) {
    let ingress = installation.ingress().await;
    let url = address(&ingress);
    doctor(&installation, &["--url", &url]).await.says("webhook main", "ok", &[&url]);
    let elsewhere = format!("http://{}/elsewhere", ingress.address);
    doctor(&installation, &["--url", &elsewhere]).await.fails("webhook main", &["404", "ingress.paths"]);
    // The secret is changed, and the ingress was not started again.
    installation.rotate("main", "new");
    let visit = doctor(&installation, &["--url", &url]).await;
    visit.fails("webhook main", &["403", "plugnmeet.main.api_secret", "start it again"]);
    visit.says("webhook main (previous_secret)", "ok", &[]);

    ingress.process.stop().await;
    doctor(&installation, &["--url", &url])
        .await
        .fails("webhook main", &["no answer from", "Connection refused", "start"]);
    doctor(&installation, &[]).await.says("webhook main", "warning", &["port 0", "--url"]);
}

#[tokio::test]
async fn what_answers_in_the_ingresss_place_is_told_apart() {
    let mut installation = Installation::on_files().await;
    let server = server(&mut installation).await;
    let url = format!("{}auth/room/isRoomActive", server.url());
    for (fault, texts) in [
        (Fault::Html, ["200", "something else than Rollcall's ingress"]),
        (Fault::status(502), ["502", "the ingress behind it does not"]),
        (
            Fault::RedirectTo("https://hunter2.example.org/".into()),
            ["307", "PlugNMeet is to post where that redirects to"],
        ),
        (Fault::Unauthorized, ["401", "asks for a password"]),
        (Fault::status(403), ["403", "does not know this key"]),
    ] {
        // The server's own check asks there too.
        server.script(Endpoint::IsRoomActive, [fault.clone(), fault]);
        doctor(&installation, &["--url", &url]).await.fails("webhook main", &texts);
    }
    server.clock_ahead(TimeDelta::minutes(-10));
    server.script(Endpoint::IsRoomActive, [Fault::status(403), Fault::status(403)]);
    doctor(&installation, &["--url", &url]).await.fails("webhook main", &["403", "shows another time", "NTP"]);
}

#[tokio::test]
async fn settings_that_cannot_be_read_are_named_and_nothing_else_is_checked() {
    let mut installation = Installation::on_files().await;
    installation.set("sessions.unknown", "perhaps");
    let visit = doctor(&installation, &[]).await;
    visit.fails("settings", &["sessions.unknown", "perhaps"]);
    for check in ["files", "queue", "database", "dead letters", "storage", "ffprobe", "ffmpeg", "plugnmeet", "webhook"]
    {
        visit.says(check, "warning", &["not checked"]);
    }
}

#[tokio::test]
async fn a_secret_that_is_none_fails_and_a_short_one_is_warned_of() {
    let mut installation = Installation::on_files().await;
    let visit = doctor(&installation, &[]).await;
    visit.says("settings", "warning", &["plugnmeet.main.api_secret: it is shorter than 16 bytes", "openssl rand"]);
    installation.server("main", "key", "", "http://127.0.0.1:1");
    installation.rotate("main", SECRET);
    doctor(&installation, &[]).await.fails("settings", &["plugnmeet.main.previous_secret", "empty"]);
}

#[tokio::test]
async fn what_others_can_read_is_named_with_the_command_and_not_changed() {
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    let set = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let folder = Folder::new();
    let secret = folder.0.join("api secret");
    std::fs::write(&secret, SECRET).unwrap();
    std::fs::create_dir_all(folder.0.join("data/queue.db-holders")).unwrap();
    std::fs::create_dir(folder.0.join("data/media")).unwrap();
    std::fs::write(folder.0.join("data/queue.db"), "").unwrap();
    folder.settings(&format!(
        "database.url = 'postgres://rollcall:hunter2@127.0.0.1:1/rollcall'\n\
         [plugnmeet.main]\nurl = 'http://127.0.0.1:1'\napi_key = 'key'\napi_secret_file = '{}'\n",
        secret.display()
    ));
    let toml = folder.0.join("rollcall.toml");
    let files = [&toml, &secret, &folder.0.join("data/queue.db")];
    let folders = ["data", "data/queue.db-holders", "data/media"].map(|name| folder.0.join(name));
    files.iter().for_each(|file| set(file, 0o644));
    folders.iter().for_each(|folder| set(folder, 0o755));
    let visit = Visit::read(folder.spawn("rollcall", &["doctor", "--json"])).await;
    for texts in [
        &["everybody", "rollcall.toml (database.url)", "chmod o-rwx rollcall.toml"][..],
        &["everybody", "the secret in", "chmod o-rwx '/", "api secret'"],
        &["data/queue.db", "chmod 600 data/queue.db"],
        &["data/queue.db-holders", "chmod 700 data/queue.db-holders"],
        &["others", "data", "chmod 700 data"],
        &["data/media", "chmod -R go-rwx /", "data/media"],
    ] {
        visit.says("files", "warning", texts);
    }
    assert_eq!(visit.of("files").count(), 6, "{visit:#?}");
    assert!(files.iter().all(|file| mode(file) == 0o644) && folders.iter().all(|folder| mode(folder) == 0o755));

    // Its group may read rollcall.toml: that is how packages lay it there.
    [&toml, &secret].iter().for_each(|file| set(file, 0o640));
    set(files[2], 0o600);
    folders.iter().for_each(|folder| set(folder, 0o700));
    Visit::read(folder.spawn("rollcall", &["doctor", "--json"])).await.says("files", "ok", &["nobody else"]);
}

#[tokio::test]
async fn where_nothing_is_yet_nothing_is_made() {
    let folder = Folder::new();
    let visit = Visit::read(folder.spawn("rollcall", &["doctor", "--json"])).await;
    visit.says("settings", "ok", &["defaults"]);
    visit.fails("database", &["rollcall.db is not there", "rollcall up", "rollcall migrate up"]);
    visit.says("queue", "warning", &["not there yet"]);
    visit.says("storage", "warning", &["not there yet"]);
    visit.says("plugnmeet", "warning", &["no server"]);
    let made = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().path());
    let made: Vec<_> = made.filter(|path| !is_of_the_test(path)).collect();
    assert_eq!(made, Vec::<std::path::PathBuf>::new());
}

/// The doctor's own words.
fn is_of_the_test(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log" || extension == "out")
}

#[tokio::test]
async fn a_queue_file_of_another_program_is_named() {
    let installation = Installation::on_files().await;
    let file = installation.broker_url.strip_prefix("sqlite://").unwrap();
    std::fs::write(file, "not a database at all, not by far, and long enough for a header of one hundred bytes")
        .unwrap();
    doctor(&installation, &[]).await.fails("queue", &[file, "no SQLite file", "move it aside"]);
}

async fn channel(broker_url: &str) -> (Connection, Channel) {
    let connection = Connection::connect(broker_url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

async fn declare(broker_url: &str, queue: &str, arguments: FieldTable) {
    let (_connection, channel) = channel(broker_url).await;
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
}

#[tokio::test]
async fn every_queue_with_other_arguments_is_named() {
    let installation = Installation::new().await;
    let queues =
        ["rooms", "recordings.dead", "attendance.retry.1s"].map(|queue| format!("{}.{queue}", installation.prefix));
    for queue in &queues {
        declare(&installation.broker_url, queue, FieldTable::default()).await;
    }
    let visit = doctor(&installation, &[]).await;
    for queue in &queues {
        let delete = format!("rabbitmqctl delete_queue {queue},");
        visit.fails("queues", &[&format!("queue {queue} exists with other arguments"), "PRECONDITION_FAILED", &delete]);
    }
    assert_eq!(visit.of("queues").count(), queues.len());
    // What does not depend on it was checked all the same.
    visit.says("queue", "ok", &["RabbitMQ "]);
    visit.says("unrouted", "ok", &[]);
    visit.nothing_else_is_wrong(&[
        "settings",
        "queues",
        "consumers",
        "dead letters",
        "plugnmeet main",
        "webhook main",
        "storage",
    ]);
}

#[tokio::test]
async fn what_no_binding_wanted_and_who_does_not_consume_is_told() {
    let installation = Installation::new().await;
    let _worker = installation.worker("rooms").await;
    let (_connection, channel) = channel(&installation.broker_url).await;
    let (exchange, key) = (format!("{}.events", installation.prefix), "main.nobody_wants_this");
    for _ in 0..3 {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish(exchange.as_str().into(), key.into(), options, b"{}", properties).await.unwrap();
    }
    // Published without a confirm: it arrives in its own time.
    let visit = eventually(Duration::from_secs(20), || async {
        let visit = doctor(&installation, &[]).await;
        let told = visit.of("unrouted").any(|finding| finding.found.starts_with("3 events"));
        if told { Ok(visit) } else { Err(format!("{visit:#?}")) }
    })
    .await;
    visit.fails("unrouted", &["unrouted", &exchange]);
    for deserted in ["attendance", "recordings"] {
        visit.says("consumers", "warning", &["nobody takes from", &format!("rollcall-worker {deserted}")]);
    }
    assert_eq!(visit.of("consumers").count(), 2);
}

#[tokio::test]
async fn a_broker_that_is_away_or_silent_or_refuses_us_is_named_and_the_rest_is_checked() {
    let mut installation = Installation::new().await;
    let good = installation.broker_url.clone();
    installation.broker_url = "amqp://guest:hunter2@127.0.0.1:1/%2f".into();
    let visit = doctor(&installation, &[]).await;
    visit.fails("queue", &["amqp://guest:***@127.0.0.1:1/%2f", "cannot be used", "see that it runs"]);
    visit.says("queues", "warning", &["not checked"]);
    visit.says("database", "ok", &["PostgreSQL", "migrated"]);

    installation.broker_url = good.replace(":guest@", ":hunter2@");
    doctor(&installation, &[]).await.fails("queue", &["refuses the connection", "user, password and virtual host"]);

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, begun) = (silent.local_addr().unwrap(), Instant::now());
    installation.broker_url = format!("amqp://guest:hunter2@{address}/%2f");
    installation.server("main", "key", "hunter2", &format!("http://{address}"));
    installation.set("queue.management_url", format!("http://guest:hunter2@{address}"));
    installation.reach_database_by(address);
    let visit = doctor(&installation, &["--url", &format!("http://{address}/")]).await;
    visit.fails("queue", &["no answer in time"]);
    visit.fails("management", &["no answer"]);
    visit.fails("database", &["cannot be reached"]);
    visit.fails("plugnmeet main", &["no answer"]);
    visit.fails("webhook main", &["no answer from"]);
    visit.says("ffmpeg", "ok", &[]);
    assert!(begun.elapsed() < Duration::from_secs(55), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_database_that_can_only_be_read_is_named() {
    let installation = Installation::new().await;
    installation.set_in_database("default_transaction_read_only = on").await;
    doctor(&installation, &[]).await.fails("database", &["can only be read", "primary"]);
}

#[tokio::test]
async fn what_the_management_plugin_and_permissions_say_is_told() {
    let (broker, management) = services::Server::rabbitmq_with_management("doctor-broker").await;
    let mut installation = Installation::on(&broker.url, &services::shared_postgres()).await;
    installation.set("queue.management_url", &management);
    let visit = doctor(&installation, &[]).await;
    visit.says("management", "ok", &["RabbitMQ", "queues of the prefix"]);
    visit.says("consumer timeout", "ok", &["11m"]);

    let wrong = management.replace("guest:guest@", "guest:hunter2@");
    installation.set("queue.management_url", wrong);
    doctor(&installation, &[]).await.fails("management", &["guest:***@", "refuses the user", "set_user_tags"]);
    // The broker's own port, in the place of the plugin's.
    installation.set("queue.management_url", broker.url.replace("amqp:", "http:").trim_end_matches("/%2f"));
    doctor(&installation, &[]).await.fails("management", &["queue.management_url", "rabbitmq-plugins enable"]);

    // RabbitMQ 3.10 does not compare this argument, newer ones do: what is declared like this is told either way.
    installation.set("queue.management_url", &management);
    let other = Installation::on(&broker.url, &services::shared_postgres()).await;
    let queue = format!("{}.dead-letters-of-somebody", installation.prefix);
    let mut arguments = FieldTable::default();
    arguments.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(60_000));
    declare(&broker.url, &queue, arguments).await;
    let visit = doctor(&installation, &[]).await;
    visit.fails("consumer timeout", &[&queue, "after 1m", "may need 11m", "delete_queue"]);

    // A user who may come in, and may not touch a queue of this prefix.
    for arguments in
        [["add_user", "plain", "hunter2"].as_slice(), &["set_permissions", "-p", "/", "plain", "^amq", "^amq", "^amq"]]
    {
        broker.rabbitmqctl(arguments).await;
    }
    let mut installation = other;
    installation.broker_url = broker.url.replace("guest:guest@", "plain:hunter2@");
    let visit = doctor(&installation, &[]).await;
    visit
        .fails("queues", &["does not let us use", &installation.prefix, "refused for user 'plain'", "set_permissions"]);
    visit.fails("queues", &["more like that"]);
    visit.says("queue", "ok", &["RabbitMQ "]);
}
