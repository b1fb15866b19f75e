//! Files and disks that cannot be used, and `rollcall up`, which needs nothing else: as somebody sees them who starts programs in
//! a folder.

#![allow(clippy::print_stdout, reason = "what this machine does not let us test is told")]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use reqwest::StatusCode;
use rollcall_shared::config::{self, SecretUrl};
use rollcall_shared::queue::{Message, Queue};
use rollcall_shared::store;
use rollcall_shared::store::entity::{dead_letter, live_session_interval, live_session_user};
use rollcall_tests::eventually;
use rollcall_tests::installation::{Folder, Ingress, Installation, Process, Server};
use rollcall_tests::joins::{applied, intervals, join};
use rollcall_tests::webhooks::{Scheme, Sender};
use rustix::process::Signal;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, EntityTrait as _, PaginatorTrait as _, Statement};

const LIMIT: Duration = Duration::from_secs(60);

/// A server, and free ports for the test; everything else is as nobody set it.
const SETTINGS: &str = "[plugnmeet.main]\nurl = \"http://127.0.0.1:1\"\napi_key = \"key\"\napi_secret = \"secret\"\n\
                        [ingress]\naddress = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n";

/// Everything that makes or uses a queue file.
const PROGRAMS: [(&str, &[&str]); 2] = [("rollcall-ingress", &[]), ("rollcall", &["up"])];

fn folder() -> Folder {
    let folder = Folder::new();
    folder.settings(SETTINGS);
    folder
}

fn folder_with_queue(path: &str) -> Folder {
    let folder = Folder::new();
    folder.settings(&format!("queue.url = \"sqlite://{path}\"\n{SETTINGS}"));
    folder
}

fn sender(address: SocketAddr) -> Sender {
    let keys = Server {
        api_key: "key".into(),
        secret: "secret".into(),
        previous_secret: None,
        url: "http://127.0.0.1:1".into(),
    };
    Sender::with(keys, address)
}

async fn open(file: &Path) -> DatabaseConnection {
    store::connect(&SecretUrl::parse(&format!("sqlite://{}?mode=rwc", file.display())).unwrap(), 1).await.unwrap()
}

/// Changes a SQLite file, and leaves nothing beside it.
async fn alter(file: &Path, statement: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let db = open(file).await;
    db.execute_unprepared(statement).await.unwrap();
    db.execute_unprepared("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
    db.close().await.unwrap();
}

/// A queue file with some hundred events in it.
async fn make_queue(file: &Path) {
    let settings = config::Queue {
        url: SecretUrl::parse(&format!("sqlite://{}", file.display())).unwrap(),
        ..config::Queue::default()
    };
    let queue = Queue::open(&settings, "the tests").unwrap();
    let publisher = queue.publisher(&config::Ingress::default()).await.unwrap();
    for _ in 0..500 {
        let message = Message::new("main", "participant_joined", Bytes::from("{}".repeat(100)));
        publisher.publish(message, LIMIT).await.unwrap();
    }
}

/// It ends badly, with one line for people that says all of `texts`.
async fn refuses(mut process: Process, texts: &[&str]) {
    let status = process.ended().await;
    let log = process.log();
    assert!(!status.success(), "{log}");
    // The rest is JSON.
    let lines: Vec<_> = log.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for text in texts {
        assert!(lines[0].contains(text), "no {text:?} in {log}");
    }
}

/// No program begins with this queue file, and none changes it.
async fn is_refused(folder: &Folder, texts: &[&str]) {
    let (file, database) = (folder.0.join("data/queue.db"), folder.0.join("data/rollcall.db"));
    let before = fs::read(&file).unwrap();
    for (program, arguments) in PROGRAMS {
        let process = folder.spawn(program, arguments);
        refuses(process, &[&["the queue file data/queue.db cannot be used"], texts].concat()).await;
        assert!(fs::read(&file).unwrap() == before, "{program} has changed the file");
    }
    assert!(!database.exists(), "rollcall up has begun");
}

#[tokio::test]
async fn a_queue_file_of_a_newer_version_is_refused_and_left_alone() {
    let folder = folder();
    let file = folder.0.join("data/queue.db");
    make_queue(&file).await;
    alter(&file, "PRAGMA user_version = 99").await;
    is_refused(&folder, &["newer Rollcall (version 99, and this one knows 2)", "run that one"]).await;
}

#[tokio::test]
async fn a_queue_file_of_the_first_version_is_looked_at_as_it_is_and_worked_off() {
    let folder = folder();
    let file = folder.0.join("data/queue.db");
    make_queue(&file).await;
    for column in ["cause", "dead_letter_id", "replay"] {
        alter(&file, &format!("ALTER TABLE message DROP COLUMN {column}")).await;
    }
    alter(
        &file,
        "UPDATE message SET queue = 'attendance.dead', dead_kind = 'permanent', last_failed_at = 1 WHERE seq <= 2",
    )
    .await;
    alter(&file, "PRAGMA user_version = 1").await;
    let before = fs::read(&file).unwrap();
    // A look leaves it to the older version.
    let settings = config::Queue {
        url: SecretUrl::parse(&format!("sqlite://{}", file.display())).unwrap(),
        ..config::Queue::default()
    };
    let queue = Queue::open(&settings, "the tests").unwrap();
    let toml = folder.0.join("rollcall.toml");
    let depths = queue.depths(&config::Settings::load(Some(&toml)).unwrap()).await.unwrap();
    assert_eq!((depths.workers[0].waiting, depths.workers[0].dead), (498, 2));
    assert!(fs::read(&file).unwrap() == before, "the look has changed the file");

    let up = folder.spawn("rollcall", &["up"]).listens().await;
    let database = folder.0.join("data/rollcall.db");
    let stored = async || {
        if !database.exists() {
            return 0;
        }
        let db = open(&database).await;
        let count = dead_letter::Entity::find().count(&db).await.unwrap_or_default();
        db.close().await.unwrap();
        count
    };
    // None of their bodies is one of a webhook.
    eventually(LIMIT, || async {
        let stored = stored().await;
        if stored == 500 { Ok(()) } else { Err(format!("{stored} are dead")) }
    })
    .await;
    up.process.stop().await;
}

#[tokio::test]
async fn a_sqlite_file_of_another_program_is_refused_and_left_alone() {
    let folder = folder();
    alter(&folder.0.join("data/queue.db"), "CREATE TABLE theirs (id INTEGER)").await;
    is_refused(&folder, &["it is a SQLite file of another program", "choose another file"]).await;
}

#[tokio::test]
async fn a_text_file_in_the_place_of_the_queue_is_refused_and_left_alone() {
    let folder = folder();
    fs::create_dir(folder.0.join("data")).unwrap();
    fs::write(folder.0.join("data/queue.db"), "What I did in my holidays\n".repeat(100)).unwrap();
    is_refused(&folder, &["it is no SQLite file, or its first page is damaged", "move it aside"]).await;
}

#[tokio::test]
async fn a_damaged_queue_file_is_refused_and_left_alone() {
    let folder = folder();
    let file = folder.0.join("data/queue.db");
    make_queue(&file).await;
    alter(&file, "PRAGMA user_version = 2").await;
    damage(&file);
    is_refused(&folder, &["it is damaged", "move it aside with its -wal", ".recover"]).await;
}

/// Overwrites a page in the middle of a SQLite file.
fn damage(file: &Path) {
    const PAGE: usize = 4096;
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / PAGE / 2 * PAGE;
    bytes[middle..middle + PAGE].fill(0xA5);
    fs::write(file, bytes).unwrap();
}

#[tokio::test]
async fn a_queue_file_that_cannot_be_made_is_named_with_the_way_out() {
    for path in ["rollcall.toml/queue.db", "rollcall.toml/data/queue.db", "/proc/rollcall/queue.db"] {
        let folder = folder_with_queue(path);
        for (program, arguments) in PROGRAMS {
            let texts = [path, "it cannot be written to", "let this user write there, or choose another file"];
            refuses(folder.spawn(program, arguments), &texts).await;
        }
    }
}

#[tokio::test]
async fn a_queue_file_or_a_folder_that_may_only_be_read_is_refused_at_the_start() {
    if !may_mount() {
        return println!("skipped: this machine lets us mount nothing");
    }
    for mounted in ["data", "data/queue.db"] {
        let folder = folder();
        make_queue(&folder.0.join("data/queue.db")).await;
        let script = format!("mount --bind {mounted} {mounted} && mount -o remount,bind,ro {mounted} && exec \"$@\"");
        for (program, arguments) in PROGRAMS {
            let process = folder.spawn_by(&["unshare", "--mount", "sh", "-c", &script, "sh"], program, arguments);
            refuses(process, &["data/queue.db", "it cannot be written to", "let this user write there"]).await;
        }
    }
}

#[tokio::test]
async fn a_database_file_that_may_only_be_read_is_refused_at_the_start() {
    if !may_mount() {
        return println!("skipped: this machine lets us mount nothing");
    }
    let folder = folder();
    interrupt(folder.spawn("rollcall", &["up"]).listens().await.process).await;
    let script =
        "mount --bind data/rollcall.db data/rollcall.db && mount -o remount,bind,ro data/rollcall.db && exec \"$@\"";
    let process = folder.spawn_by(&["unshare", "--mount", "sh", "-c", script, "sh"], "rollcall", &["up"]);
    refuses(process, &["the database at sqlite://data/rollcall.db cannot be used", "cannot be written to"]).await;
}

#[tokio::test]
async fn what_waits_by_a_clock_that_was_ahead_does_not_wait_for_it() {
    let installation = Installation::on_files().await;
    let ingress = installation.ingress().await;
    let sender = sender_to(&installation, &ingress);
    sender.post(&join("class", "a").to_string()).await;
    // As it is when it was put off for a second while the clock was an hour ahead.
    let in_an_hour = (Utc::now() + TimeDelta::hours(1)).timestamp_millis();
    let file = queue_of(&installation).await;
    let put_off = format!("UPDATE message SET queue = 'attendance.retry', due_at = {in_an_hour}");
    file.execute_unprepared(&put_off).await.unwrap();
    let worker = installation.worker("attendance").await;
    applied(&installation, 1, Duration::from_secs(10)).await;
    worker.stop().await;
}

#[tokio::test]
async fn what_a_purge_had_that_was_killed_is_applied_by_a_worker_that_has_read_past_it() {
    let mut installation = Installation::on_files().await;
    // It has two in hand and leaves the others.
    installation.set("workers.batch_size", 1);
    let ingress = installation.ingress().await;
    let sender = sender_to(&installation, &ingress);
    let worker = installation.worker("attendance").await;
    let held = store::begin(&installation.db).await.unwrap();
    for number in 0..12 {
        sender.post(&join("class", &format!("user-{number}")).to_string()).await;
    }
    let purge = installation.spawn("rollcall", &["purge", "attendance", "--reason", "a mistake", "--yes"]);
    let file = queue_of(&installation).await;
    let of_purge = "SELECT count(*) FROM lease WHERE holder LIKE 'drain-%'";
    let taken = eventually(LIMIT, || async {
        let row = file.query_one_raw(Statement::from_string(DbBackend::Sqlite, of_purge)).await.unwrap();
        let taken: i64 = row.unwrap().try_get_by_index(0).unwrap();
        if taken > 0 { Ok(taken) } else { Err(format!("it has nothing: {}", purge.log())) }
    })
    .await;
    // Before it can drop any: the database is held.
    purge.signal(Signal::STOP);
    held.rollback().await.unwrap();
    sender.post(&join("class", "late").to_string()).await;
    let others = 13 - u64::try_from(taken).unwrap();
    applied(&installation, others, LIMIT).await;
    assert_eq!(intervals(&installation).await, others);
    purge.kill().await;
    applied(&installation, 13, LIMIT).await;
    worker.stop().await;
}

fn sender_to(installation: &Installation, ingress: &Ingress) -> Sender {
    Sender::new(installation, "main", ingress.address)
}

async fn queue_of(installation: &Installation) -> DatabaseConnection {
    open(&SecretUrl::parse(&installation.broker_url).unwrap().sqlite_path().unwrap()).await
}

fn may_mount() -> bool {
    let mut unshare = std::process::Command::new("unshare");
    let mounted = unshare.args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    mounted.is_ok_and(|mounted| mounted.status.success())
}

#[tokio::test]
async fn a_database_file_that_cannot_be_used_is_named_and_left_alone() {
    let damaged = folder();
    let file = damaged.0.join("data/rollcall.db");
    alter(&file, "CREATE TABLE seaql_migrations (version TEXT PRIMARY KEY, applied_at INTEGER NOT NULL)").await;
    alter(&file, "INSERT INTO seaql_migrations VALUES ('m20991231_000001_newer', 0)").await;
    let before = fs::read(&file).unwrap();
    refuses(
        damaged.spawn("rollcall", &["up"]),
        &["data/rollcall.db", "by a newer Rollcall", "run that one", "m20991231_000001_newer"],
    )
    .await;
    assert!(fs::read(&file).unwrap() == before, "it has changed the file");

    fs::write(&file, "What I did in my holidays\n".repeat(100)).unwrap();
    refuses(damaged.spawn("rollcall", &["up"]), &["data/rollcall.db", "file is not a database"]).await;
    assert_eq!(fs::read_to_string(&file).unwrap(), "What I did in my holidays\n".repeat(100));

    let unwritable = Folder::new();
    unwritable.settings(&format!("database.url = \"sqlite://rollcall.toml/rollcall.db\"\n{SETTINGS}"));
    refuses(unwritable.spawn("rollcall", &["up"]), &["rollcall.toml"]).await;
}

/// Where a disk of its own is, as seen by a process that has it.
struct Disk(PathBuf);

impl Disk {
    fn free(&self) -> u64 {
        let disk = rustix::fs::statvfs(&self.0).unwrap();
        disk.f_bavail * disk.f_frsize
    }

    /// Leaves so many bytes free.
    fn fill_up_to(&self, free: u64) {
        let more = self.free().checked_sub(free).expect("there is less free already");
        let written = fs::write(self.filler(), vec![1; usize::try_from(more).unwrap()]);
        assert!(written.is_ok() || free == 0, "{written:?}");
    }

    fn make_room(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

/// An ingress and a worker on a disk of their own.
struct OnDisk {
    ingress: Ingress,
    worker: Process,
    sender: Sender,
    disk: Disk,
    /// Of the database, for the test to read: SQLite does not find the way to the disk.
    copy: PathBuf,
    accepted: u64,
}

impl OnDisk {
    async fn start(folder: &Folder) -> Self {
        fs::create_dir(folder.0.join("data")).unwrap();
        let mount = "mount -t tmpfs -o size=100m none data && exec \"$@\"";
        let by = ["unshare", "--mount", "sh", "-c", mount, "sh"];
        let ingress = folder.spawn_by(&by, "rollcall", &["up", "--only", "ingress"]).listens().await;
        let pid = ingress.process.id().to_string();
        let by = ["nsenter", "--target", &pid, "--mount", "--wd"];
        let worker = folder.spawn_by(&by, "rollcall", &["up", "--only", "attendance"]);
        worker.logs("taking deliveries").await;
        let inside = folder.0.join("data");
        let disk = Disk(Path::new("/proc").join(pid).join("root").join(inside.strip_prefix("/").unwrap()));
        Self { sender: sender(ingress.address), ingress, worker, disk, copy: folder.0.join("copy.db"), accepted: 0 }
    }

    /// Posts a join of somebody new: its answer's status, and when to come again.
    async fn try_post(&mut self) -> (StatusCode, Option<String>) {
        self.try_post_with("").await
    }

    async fn try_post_with(&mut self, padding: &str) -> (StatusCode, Option<String>) {
        let mut body = join("full", &format!("user-{}", self.accepted));
        body["padding"] = padding.into();
        let body = body.to_string();
        let answer = self.sender.send(&body, Scheme::Token).await.unwrap();
        let retry_after = answer.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
        if answer.status() == StatusCode::OK {
            self.accepted += 1;
        }
        (answer.status(), retry_after)
    }

    async fn post(&mut self, count: u64) {
        for _ in 0..count {
            assert_eq!(self.try_post().await, (StatusCode::OK, None));
        }
    }

    async fn is_refused(&mut self) {
        assert_eq!(self.try_post().await, (StatusCode::SERVICE_UNAVAILABLE, Some("15".into())));
        self.is_ready(StatusCode::SERVICE_UNAVAILABLE).await;
    }

    async fn is_ready(&self, status: StatusCode) {
        eventually(LIMIT, || async {
            let answer = reqwest::get(format!("http://{}/readyz", self.ingress.admin)).await.unwrap();
            if answer.status() == status { Ok(()) } else { Err(format!("/readyz answers {}", answer.status())) }
        })
        .await;
    }

    /// Stops the worker in its tracks, and not where it has the file to itself.
    async fn freeze_worker(&mut self) {
        loop {
            self.worker.signal(Signal::STOP);
            if self.try_post().await.0 == StatusCode::OK {
                return;
            }
            self.worker.signal(Signal::CONT);
        }
    }

    async fn applied(&self) -> Result<(), String> {
        // While it is written to that may be a damaged one: the next will not be.
        for part in ["", "-wal"] {
            let copy = self.copy.with_extension(format!("db{part}"));
            fs::copy(self.disk.0.join(format!("rollcall.db{part}")), copy).map_err(|error| error.to_string())?;
        }
        let db = open(&self.copy).await;
        let found = live_session_interval::Entity::find().count(&db).await.map_err(|error| error.to_string());
        db.close().await.unwrap();
        let found = found?;
        if found == self.accepted { Ok(()) } else { Err(format!("{found} of {} are applied", self.accepted)) }
    }
}

#[tokio::test]
async fn webhooks_are_refused_before_the_disk_is_full_and_nothing_accepted_is_lost() {
    const RESERVE: u64 = 64 * 1024 * 1024;
    if !may_mount() {
        return println!("skipped: this machine lets us mount nothing");
    }
    let folder = folder();
    let mut programs = OnDisk::start(&folder).await;
    programs.freeze_worker().await;
    programs.post(100).await;
    programs.disk.fill_up_to(RESERVE - 1024 * 1024);
    programs.is_refused().await;
    // What is left is for who works it off.
    programs.worker.signal(Signal::CONT);
    eventually(LIMIT, || programs.applied()).await;
    programs.is_refused().await;

    programs.disk.make_room();
    // Without a webhook to show it.
    programs.is_ready(StatusCode::OK).await;
    programs.freeze_worker().await;
    programs.post(100).await;
    programs.disk.fill_up_to(0);
    programs.is_refused().await;
    programs.worker.signal(Signal::CONT);
    // It gets by with the room that its files have already, or has to wait.
    eventually(LIMIT, || async {
        let waits = programs.worker.log().contains("full");
        if waits { Ok(()) } else { programs.applied().await }
    })
    .await;
    programs.disk.make_room();
    eventually(LIMIT, || programs.applied()).await;
    programs.is_ready(StatusCode::OK).await;
    programs.post(10).await;
    eventually(LIMIT, || programs.applied()).await;
    programs.worker.stop().await;
    programs.ingress.process.stop().await;
}

#[tokio::test]
async fn a_disk_that_the_queue_itself_has_filled_has_room_again_once_that_is_worked_off() {
    if !may_mount() {
        return println!("skipped: this machine lets us mount nothing");
    }
    let folder = folder();
    let mut programs = OnDisk::start(&folder).await;
    programs.freeze_worker().await;
    let padding = "x".repeat(200_000);
    while programs.try_post_with(&padding).await.0 == StatusCode::OK {}
    programs.is_refused().await;
    assert!(programs.accepted > 50, "only {} were accepted", programs.accepted);

    // The file stays as long as it is: what is free in it counts.
    programs.worker.signal(Signal::CONT);
    eventually(LIMIT, || programs.applied()).await;
    programs.is_ready(StatusCode::OK).await;
    programs.post(10).await;
    eventually(LIMIT, || programs.applied()).await;
    programs.worker.stop().await;
    programs.ingress.process.stop().await;
}

async fn send(folder: &Folder, address: SocketAddr, user: &str) {
    let url = format!("http://{address}/webhooks/plugnmeet");
    let arguments = ["send", "participant_joined", "--user", user, "--url", &url];
    let mut send = folder.spawn("rollcall", &arguments);
    assert!(send.ended().await.success(), "{}", send.log());
    assert!(send.output().starts_with("200 OK"), "{}", send.output());
}

/// Waits until exactly these people are in the folder's database.
async fn people(folder: &Folder, expected: &[&str]) {
    let db = open(&folder.0.join("data/rollcall.db")).await;
    eventually(LIMIT, || async {
        let rows = live_session_user::Entity::find().all(&db).await.map_err(|error| error.to_string())?;
        let mut found: Vec<_> = rows.iter().map(|row| row.user_id.as_str()).collect();
        found.sort_unstable();
        if found == expected { Ok(()) } else { Err(format!("there are {found:?}")) }
    })
    .await;
}

/// Ctrl-C; it ends well.
async fn interrupt(mut process: Process) {
    process.signal(Signal::INT);
    let status = process.ended().await;
    assert!(status.success(), "{}", process.log());
}

#[tokio::test]
async fn all_that_rollcall_up_must_be_told_is_a_server() {
    let folder = folder();
    let up = folder.spawn("rollcall", &["up"]).listens().await;
    assert!(up.process.output().contains(&format!("url: \"http://{}/webhooks/plugnmeet\"", up.address)));
    assert!(!up.process.output().contains("No PlugNMeet server is set"));
    send(&folder, up.address, "42").await;
    people(&folder, &["42"]).await;
    interrupt(up.process).await;
    // Once more, on what is there.
    let up = folder.spawn("rollcall", &["up"]).listens().await;
    send(&folder, up.address, "43").await;
    people(&folder, &["42", "43"]).await;
    interrupt(up.process).await;
}

#[tokio::test]
async fn rollcall_up_without_a_server_says_what_to_put_where() {
    let folder = Folder::new();
    folder.settings("[ingress]\naddress = \"127.0.0.1:0\"\nadmin_address = \"127.0.0.1:0\"\n");
    let up = folder.spawn("rollcall", &["up"]).listens().await;
    for text in ["Put this into rollcall.toml", "[plugnmeet.main]", "api_secret = ", "client.secret", "webhook_conf:"] {
        assert!(up.process.output().contains(text), "no {text:?} in {}", up.process.output());
    }
    let (status, _) = sender(up.address).try_post(&join("refused", "a").to_string(), Scheme::Token).await.unwrap();
    assert!(status.is_client_error(), "{status}");
    interrupt(up.process).await;
}

#[tokio::test]
async fn parts_of_rollcall_up_run_by_themselves() {
    let folder = folder();
    let ingress = folder.spawn("rollcall", &["up", "--only", "ingress"]).listens().await;
    send(&folder, ingress.address, "42").await;
    people(&folder, &[]).await;
    let rooms = folder.spawn("rollcall", &["up", "--only", "rooms,recordings"]);
    rooms.logs("taking deliveries").await;
    interrupt(rooms).await;
    interrupt(ingress.process).await;
    people(&folder, &[]).await;

    let attendance = folder.spawn("rollcall", &["up", "--only", "attendance"]);
    people(&folder, &["42"]).await;
    assert_eq!(attendance.output(), "");
    interrupt(attendance).await;
}

#[tokio::test]
async fn a_second_rollcall_up_is_told_of_the_first_which_goes_on() {
    let folder = folder();
    let first = folder.spawn("rollcall", &["up"]).listens().await;
    let (address, admin) = (first.address.to_string(), first.admin.to_string());
    folder.settings(&SETTINGS.replacen("127.0.0.1:0", &address, 1).replace("127.0.0.1:0", &admin));
    let texts = [address.as_str(), "ingress.address", "does another Rollcall run there?"];
    refuses(folder.spawn("rollcall", &["up"]), &texts).await;
    let (before, behind) = SETTINGS.rsplit_once("127.0.0.1:0").unwrap();
    folder.settings(&format!("{before}{admin}{behind}"));
    let texts = [admin.as_str(), "ingress.admin_address", "does another Rollcall run there?"];
    refuses(folder.spawn("rollcall", &["up"]), &texts).await;
    send(&folder, first.address, "42").await;
    people(&folder, &["42"]).await;
    assert!(!first.process.log().contains("ERROR"), "{}", first.process.log());
    interrupt(first.process).await;
}
