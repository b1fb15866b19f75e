//! Nobody else on the machine reads or locks what Rollcall keeps on its disk, and where somebody does, the ingress says so.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rollcall_ops::standin::{Recording, StandIn};
use rollcall_shared::store::entity::live_session_recording as recording;
use rollcall_tests::eventually;
use rollcall_tests::installation::{Folder, Ingress, Installation};
use rollcall_tests::joins::join;
use rollcall_tests::webhooks::Sender;
use rustix::fs::{FlockOperation, fcntl_lock};
use sea_orm::EntityTrait as _;
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);
/// The loosest there is.
const NO_UMASK: [&str; 4] = ["sh", "-c", "umask 0; exec \"$@\"", "sh"];

/// A folder and everything in it.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = entries.flat_map(|path| if path.is_dir() { tree(&path) } else { vec![path] });
    std::iter::once(folder.to_owned()).chain(below).collect()
}

/// What others than the owner may do anything with, below a folder.
fn open_to_others(folder: &Path) -> Vec<(PathBuf, u32)> {
    // What is being renamed or deleted at this very moment is nobody's to read.
    let modes =
        tree(folder).into_iter().filter_map(|path| fs::metadata(&path).map(|file| (path, file.mode() & 0o7777)).ok());
    modes.filter(|(_, mode)| mode & 0o077 != 0).collect()
}

/// Opens everything below a folder for everybody, as programs of an older version made it.
fn open_up(folder: &Path) {
    for path in tree(folder) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
}

/// Has a recording of this id archived.
async fn archive(installation: &Installation, server: &StandIn, ingress: &Ingress, id: &str) {
    let video = installation.directory.join("class.mp4");
    let made = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=64x48:duration=1"])
        .args(["-pix_fmt", "yuv420p"])
        .arg(&video)
        .status();
    assert!(made.unwrap().success());
    server.add_recording(Recording::new(id, "room", "sid", &video));
    let event = json!({
        "event": "recording_proceeded", "id": id, "created_at": "1790000000",
        "room": {"sid": "sid", "room_id": "room"},
        "recording_info": {"record_id": id, "recorder_id": "node_01", "file_path": "x"},
    });
    Sender::new(installation, "main", ingress.address).post(&event.to_string()).await;
    eventually(LIMIT, || async {
        let rows = recording::Entity::find().all(&installation.db).await.unwrap();
        let ready = rows.iter().any(|row| row.record_id == id && row.status == "ready");
        if ready { Ok(()) } else { Err(format!("{rows:?}")) }
    })
    .await;
}

async fn school() -> (Installation, StandIn) {
    let mut installation = Installation::on_files().await;
    let server = StandIn::start("key", &"secret".into()).await.unwrap();
    installation.server("main", "key", "secret", server.url().as_str());
    (installation, server)
}

#[tokio::test]
async fn what_the_programs_make_is_their_users_alone_whatever_the_umask() {
    let folder = Folder::new();
    let ports = "ingress.address = '127.0.0.1:0'\ningress.admin_address = '127.0.0.1:0'\nlog.format = 'json'\n";
    folder.settings(ports);
    let up = folder.spawn_by(&NO_UMASK, "rollcall", &["up"]).listens().await;
    up.process.logs("taking deliveries").await;
    let data = folder.0.join("data");
    eventually(LIMIT, || async {
        let made = ["queue.db-wal", "queue.db-shm", "queue.db-holders", "rollcall.db-wal", "media/.incoming"];
        let missing = made.into_iter().find(|name| !data.join(name).exists());
        missing.map_or(Ok(()), |name| Err(format!("there is no {name}")))
    })
    .await;
    assert_eq!(open_to_others(&data), []);
    up.process.stop().await;
    assert_eq!(open_to_others(&data), []);
}

#[tokio::test]
async fn the_spool_is_its_users_alone() {
    let installation = Installation::new().await;
    let ingress = installation.spawn_by(&NO_UMASK, "rollcall-ingress", &[]).listens().await;
    let data = installation.directory.join("data");
    assert!(data.join("spool.db").exists());
    assert_eq!(open_to_others(&data), []);
    ingress.process.stop().await;
}

#[tokio::test]
async fn what_an_older_version_left_open_is_mended_at_the_start() {
    let (installation, server) = school().await;
    let up = installation.up().await;
    archive(&installation, &server, &up, "first").await;
    up.process.stop().await;
    let (data, media) = (installation.directory.join("data"), installation.media());
    open_up(&data);
    open_up(&media);
    let ingress = installation.spawn_by(&NO_UMASK, "rollcall-ingress", &[]).listens().await;
    assert_eq!(open_to_others(&data), []);
    // It has nothing to do with that one.
    assert_ne!(open_to_others(&media), []);
    let worker = installation.spawn_by(&NO_UMASK, "rollcall-worker", &["recordings"]);
    worker.logs("taking deliveries").await;
    assert_eq!(open_to_others(&media), []);
    archive(&installation, &server, &ingress, "second").await;
    assert_eq!((open_to_others(&data), open_to_others(&media)), (vec![], vec![]));
    // Beside something that is not Rollcall's, a folder is left as it is.
    open_up(&data);
    fs::write(data.join("thesis.txt"), "").unwrap();
    worker.stop().await;
    ingress.process.stop().await;
    let ingress = installation.ingress().await;
    let open = open_to_others(&data).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(open, [data.clone(), data.join("thesis.txt")]);
    ingress.process.stop().await;
}

#[tokio::test]
async fn a_group_may_read_recordings_and_nothing_else() {
    const GROUP: u32 = 4711;
    if !rustix::process::geteuid().is_root() {
        // Only root may give files to any group.
        return;
    }
    let (mut installation, server) = school().await;
    // Before there was a group.
    let up = installation.up().await;
    archive(&installation, &server, &up, "first").await;
    up.process.stop().await;
    installation.set("storage.group", GROUP);
    let up = installation.spawn_by(&NO_UMASK, "rollcall", &["up"]).listens().await;
    archive(&installation, &server, &up, "second").await;
    let files = tree(&installation.media());
    assert_eq!(files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "mp4")).count(), 2, "{files:?}");
    for path in files {
        let file = fs::metadata(&path).unwrap();
        let expected = if file.is_dir() { 0o750 } else { 0o640 };
        assert_eq!((file.mode() & 0o777, file.gid()), (expected, GROUP), "{}", path.display());
    }
    assert_eq!(open_to_others(&installation.directory.join("data")), []);
    up.process.stop().await;

    installation.set("storage.group", "nobody-has-this");
    let mut worker = installation.spawn("rollcall-worker", &["recordings"]);
    assert!(!worker.ended().await.success());
    assert!(worker.log().contains("this machine has no such group"), "{}", worker.log());
}

#[tokio::test]
async fn an_ingress_that_cannot_write_is_not_ready_though_nobody_has_asked_it_to() {
    let installation = Installation::on_files().await;
    let ingress = installation.ingress().await;
    Sender::new(&installation, "main", ingress.address).post(&join("room", "1").to_string()).await;
    assert_eq!(ingress.readiness().await.0, 200);
    let log = fs::File::open(installation.directory.join("data/queue.db-shm")).unwrap();
    // What whoever may read a file may lock is enough.
    fcntl_lock(&log, FlockOperation::LockShared).unwrap();
    let is_not_ready = || async {
        let (status, text) = ingress.readiness().await;
        if status == 503 { Ok(()) } else { Err(format!("{status} {text}")) }
    };
    eventually(Duration::from_secs(20), is_not_ready).await;
    // And not now and again.
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        is_not_ready().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fcntl_lock(&log, FlockOperation::Unlock).unwrap();
    eventually(Duration::from_secs(20), || async {
        let (status, text) = ingress.readiness().await;
        if status == 200 { Ok(()) } else { Err(format!("{status} {text}")) }
    })
    .await;
    ingress.process.stop().await;
}
