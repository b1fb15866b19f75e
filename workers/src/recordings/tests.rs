use std::path::Path;

use chrono::DateTime;
use rollcall_migrations::{Migrator, MigratorTrait as _};
use rollcall_ops::standin::{self, Endpoint, Fault, StandIn};
use rollcall_shared::config::SecretUrl;
use rollcall_shared::event::{Recording, Room, Sid};
use rollcall_shared::signature::Scheme;
use rollcall_shared::store;
use rollcall_shared::store::entity::course_live_session as session;
use sea_orm::{ConnectionTrait as _, PaginatorTrait as _};
use tempfile::TempDir;

use super::*;

const RECORD_ID: &str = "r-1";

/// A PlugNMeet server, and where its recording lies.
pub(super) struct Server {
    pub(super) stand_in: StandIn,
    folder: TempDir,
}

impl Server {
    /// One that has no recording yet.
    async fn start() -> Self {
        let stand_in = StandIn::start("key", &"hunter2".into()).await.unwrap();
        Self { stand_in, folder: tempfile::tempdir().unwrap() }
    }

    /// One whose recording has these bytes.
    pub(super) async fn with(bytes: &[u8]) -> Self {
        let server = Self::start().await;
        server.add(bytes);
        server
    }

    /// From now on it has the recording.
    fn add(&self, bytes: &[u8]) {
        let file = self.folder.path().join("recording");
        std::fs::write(&file, bytes).unwrap();
        let recording = standin::Recording::new(RECORD_ID, "phys-9", "sid-1", file);
        let created_at = DateTime::from_timestamp(1_795_308_819, 0).unwrap();
        self.stand_in.add_recording(standin::Recording { title: "Physics فیزیک".into(), created_at, ..recording });
    }

    pub(super) fn client(&self) -> api::Client {
        let settings = config::PlugNMeet {
            url: self.stand_in.url(),
            api_key: "key".into(),
            api_secret: "hunter2".into(),
            previous_secret: None,
            signatures: Scheme::ALL.into(),
        };
        api::Client::new(&settings, Duration::from_secs(5), &[]).unwrap()
    }
}

/// A migrated database of a test's own.
pub(crate) struct Database {
    pub(crate) connection: DatabaseConnection,
    _folder: TempDir,
}

impl Database {
    async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.path().join("rollcall.db").display());
        Self::migrated(&url, folder).await
    }

    /// SQLite, and PostgreSQL where the tests are given one.
    pub(crate) async fn each() -> Vec<Self> {
        let mut databases = vec![Self::sqlite().await];
        if let Ok(server) = std::env::var("ROLLCALL_TEST_POSTGRES_URL") {
            let name = format!("rec_{}", uuid::Uuid::new_v4().simple());
            let admin = store::connect(&SecretUrl::parse(&server).unwrap(), 1).await.unwrap();
            admin.execute_unprepared(&format!("CREATE DATABASE {name}")).await.unwrap();
            let mut url = url::Url::parse(&server).unwrap();
            url.set_path(&name);
            databases.push(Self::migrated(url.as_str(), tempfile::tempdir().unwrap()).await);
        }
        databases
    }

    async fn migrated(url: &str, folder: TempDir) -> Self {
        let connection = store::connect(&SecretUrl::parse(url).unwrap(), 4).await.unwrap();
        Migrator::up(&connection, None).await.unwrap();
        Self { connection, _folder: folder }
    }
}

/// The id of a new row.
pub(super) async fn insert_recording(db: &DatabaseConnection, record_id: &str) -> i64 {
    let session =
        session::ActiveModel { source: Set("main".into()), room_id: Set("phys-9".into()), ..Default::default() };
    let session_id = session::Entity::insert(session).exec(db).await.unwrap().last_insert_id;
    let row = ActiveModel {
        session_id: Set(session_id),
        source: Set("main".into()),
        record_id: Set(record_id.into()),
        status: Set(PROCESSING.into()),
        ..Default::default()
    };
    Entity::insert(row).exec(db).await.unwrap().last_insert_id
}

/// A worker with everything that it needs.
struct Site {
    worker: Recordings,
    server: Server,
    database: Database,
    folder: TempDir,
}

impl Site {
    /// One whose server's recording has these bytes.
    async fn start(settings: &str, recording: &[u8]) -> Self {
        Self::with(Database::sqlite().await, settings, Server::with(recording).await)
    }

    fn with(database: Database, settings: &str, server: Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let toml = format!(
            "queue.url = 'amqp://localhost'\nstorage.url = 'file://{}'\n[plugnmeet.main]\nurl = '{}'\n\
             api_key = 'key'\napi_secret = 'hunter2'\n[recordings]\n{settings}",
            folder.path().join("media").display(),
            server.stand_in.url(),
        );
        let file = folder.path().join("rollcall.toml");
        std::fs::write(&file, toml).unwrap();
        let settings = Settings::load(Some(&file)).unwrap();
        let worker = Recordings::new(&settings, database.connection.clone()).unwrap();
        Self { worker, server, database, folder }
    }

    async fn handle(&self) -> Result<Outcome, Failure> {
        match self.worker.handle(&Batch::from_iter([(event(), None)])).await? {
            Handled::Ended(outcome) => Ok(outcome),
            Handled::UnderWay(job) => job.ended.await,
        }
    }

    async fn row(&self) -> Model {
        Entity::find().one(&self.database.connection).await.unwrap().unwrap()
    }

    fn media(&self) -> std::path::PathBuf {
        self.folder.path().join("media")
    }

    /// Nothing lies about and nobody holds a lease.
    async fn is_tidy(&self) -> bool {
        let left = std::fs::read_dir(self.media().join(".incoming")).unwrap().count();
        let leases = store::entity::recording_lease::Entity::find().count(&self.database.connection).await.unwrap();
        left == 0 && leases == 0
    }
}

fn event() -> Event {
    let room = Room {
        source: "main".into(),
        room_id: "phys-9".into(),
        sid: Sid::Server("sid-1".into()),
        title: None,
        parent_room_id: None,
    };
    let change = Change::Recording(Recording { record_id: RECORD_ID.into() });
    Event { room, at: DateTime::from_timestamp(1_795_308_819, 0).unwrap(), change }
}

/// What ffmpeg makes of these options.
fn film(options: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("film");
    let mut ffmpeg = std::process::Command::new("ffmpeg");
    ffmpeg.args(["-nostdin", "-v", "error"]).args(options.split(' ')).arg(&file);
    assert!(ffmpeg.status().unwrap().success());
    std::fs::read(file).unwrap()
}

fn video() -> Vec<u8> {
    film("-f lavfi -i testsrc=size=320x180 -t 2 -c:v mpeg4 -f mp4")
}

#[tokio::test]
async fn a_recording_is_archived_once() {
    for database in Database::each().await {
        let film = video();
        let site = Site::with(database, "", Server::with(&film).await);
        for _ in 0..2 {
            assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
        }
        assert_eq!(site.server.stand_in.count(Endpoint::Download), 1);
        let row = site.row().await;
        assert_eq!((row.status.as_str(), row.recording_type.as_deref(), row.error), (READY, Some("video"), None));
        assert_eq!((row.width, row.height, row.video_codec.as_deref()), (Some(320), Some(180), Some("mpeg4")));
        assert_eq!((row.file_size, row.duration_seconds.map(f64::round)), (Some(film.len() as i64), Some(2.0)));
        assert_eq!(row.title.as_deref(), Some("Physics فیزیک"));
        assert_eq!(row.file_name.as_deref(), Some("Physics فیزیک 2026-11-22 r-1.mp4"));
        assert_eq!(row.recorded_at, DateTime::from_timestamp(1_795_308_819, 0));
        let key = format!("main/2026/11/{}-{}", row.id, &row.sha256.unwrap()[..16]);
        assert_eq!((row.file_key, row.thumbnail_key), (Some(format!("{key}.mp4")), Some(format!("{key}.jpg"))));
        assert_eq!(std::fs::read(site.media().join(format!("{key}.mp4"))).unwrap(), film);
        assert!(std::fs::read(site.media().join(format!("{key}.jpg"))).unwrap().starts_with(&[0xff, 0xd8]));
        assert!(site.is_tidy().await);
    }
}

#[tokio::test]
async fn sound_alone_is_a_voice_recording_without_a_picture() {
    let site = Site::start("", &film("-f lavfi -i sine -t 1 -f mp3")).await;
    site.handle().await.unwrap();
    let row = site.row().await;
    assert_eq!((row.status.as_str(), row.recording_type.as_deref(), row.error), (READY, Some("voice"), None));
    assert_eq!((row.width, row.video_codec, row.thumbnail_key), (None, None, None));
    assert!(row.file_key.unwrap().ends_with(".mp3"));
}

#[tokio::test]
async fn a_recording_that_is_not_there_yet_is_processing_and_failed_when_given_up() {
    let site = Site::with(Database::sqlite().await, "", Server::start().await);
    let failure = site.handle().await.unwrap_err();
    assert!(matches!(failure, Failure::Transient(_)), "{failure}");
    let row = site.row().await;
    assert_eq!(row.status, PROCESSING);
    assert_eq!(row.error.unwrap(), failure.to_string());
    assert!(failure.to_string().starts_with("recording r-1 of main: asking about it: "), "{failure}");
    assert!(site.is_tidy().await);

    site.worker.gave_up(&event(), &failure).await.unwrap();
    assert_eq!(site.row().await.status, FAILED);
    // An operator replays it.
    site.server.add(&video());
    assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
    site.worker.gave_up(&event(), &failure).await.unwrap();
    let row = site.row().await;
    assert_eq!((row.status.as_str(), row.error), (READY, None));
}

#[tokio::test]
async fn garbage_is_never_ready() {
    let site = Site::start("", &[7; 5000]).await;
    let failure = site.handle().await.unwrap_err();
    assert!(matches!(failure, Failure::Permanent(_)), "{failure}");
    assert!(failure.to_string().contains("the file is not a recording"), "{failure}");
    assert_eq!(site.row().await.status, PROCESSING);
    assert!(site.is_tidy().await);
}

#[tokio::test]
async fn without_a_thumbnail_it_is_ready_and_says_so() {
    let site = Site::start("ffmpeg = '/nowhere/ffmpeg'", &video()).await;
    assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
    let row = site.row().await;
    assert_eq!((row.status.as_str(), row.thumbnail_key), (READY, None));
    assert!(row.error.unwrap().contains("recordings.ffmpeg"));
}

#[tokio::test]
async fn without_ffprobe_nothing_is_downloaded() {
    let site = Site::start("ffprobe = '/nowhere/ffprobe'", &video()).await;
    let failure = site.handle().await.unwrap_err();
    assert!(
        matches!(failure, Failure::Transient(_)) && failure.to_string().contains("recordings.ffprobe"),
        "{failure}"
    );
    assert_eq!(site.server.stand_in.count(Endpoint::Download), 0);
}

/// A site whose server holds the first download back.
async fn held_site(settings: &str, recording: &[u8]) -> Site {
    let site = Site::start(settings, recording).await;
    site.server.stand_in.script(Endpoint::Download, [Fault::Held]);
    site
}

#[tokio::test]
async fn a_long_job_outlives_its_delivery() {
    let site = held_site("hold = '50ms'\nlease = '10s'\nconcurrency = 1", &video()).await;
    let look_again = Outcome::LookAgain(Duration::from_secs(10));
    // The first starts the job; the second finds no slot.
    for _ in 0..2 {
        assert_eq!(site.handle().await.unwrap(), look_again);
    }
    site.server.stand_in.let_go(1);
    while site.row().await.status != READY {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
    assert_eq!(site.server.stand_in.count(Endpoint::Download), 1);
    assert!(site.is_tidy().await);
}

#[tokio::test]
async fn how_a_long_job_failed_is_told_to_who_looks_again() {
    let site = held_site("hold = '50ms'", &[7; 5000]).await;
    assert!(matches!(site.handle().await.unwrap(), Outcome::LookAgain(_)));
    site.server.stand_in.let_go(1);
    while site.row().await.error.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failure = site.handle().await.unwrap_err();
    assert!(matches!(failure, Failure::Permanent(_)) && failure.to_string().contains("not a recording"), "{failure}");
    assert!(site.is_tidy().await);
}

#[tokio::test]
async fn a_worker_that_stops_leaves_the_recording_to_another() {
    let site = held_site("hold = '50ms'", &video()).await;
    assert!(matches!(site.handle().await.unwrap(), Outcome::LookAgain(_)));
    site.worker.shutdown().await;
    assert!(site.is_tidy().await);
    assert_eq!(site.row().await.status, PROCESSING);
}

#[tokio::test]
async fn what_a_killed_worker_left_is_taken_over_and_swept() {
    let elsewhere = tempfile::tempdir().unwrap();
    for settings in [String::new(), format!("work_dir = '{}'", elsewhere.path().display())] {
        let site = Site::start(&settings, &video()).await;
        let db = &site.database.connection;
        let id = insert_recording(db, "r-1").await;
        let lease::Asked::Ours(dead) = Lease::ask(db, id, Duration::ZERO).await.unwrap() else { panic!() };
        let left = site.worker.archivist.archive.work_file(id, &dead, archive::RECORDING);
        std::fs::write(Path::new(&left.path), "half").unwrap();
        // Half of the copy, too, where that is what it was at.
        let name = left.path.file_name().unwrap();
        std::fs::write(site.media().join(".incoming").join(name), "half").unwrap();
        std::mem::forget(left);
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
        assert!(site.is_tidy().await);
        assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn what_two_holders_died_of_is_fetched_alone() {
    let site = Site::start("concurrency = 2\nlease = '10s'", &video()).await;
    let db = &site.database.connection;
    let id = insert_recording(db, RECORD_ID).await;
    let another_job = || Arc::clone(&site.worker.slots).try_acquire_owned().unwrap();
    for holders in 1..=2 {
        let lease::Asked::Ours(_) = Lease::ask(db, id, Duration::ZERO).await.unwrap() else { panic!() };
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(lease::is_last_chance(db, id).await.unwrap(), holders == 2);
    }
    let busy = another_job();
    assert_eq!(site.handle().await.unwrap(), Outcome::LookAgain(Duration::from_secs(10)));
    assert_eq!(site.server.stand_in.count(Endpoint::Download), 0);
    drop(busy);
    assert_eq!(site.handle().await.unwrap(), Outcome::Applied);
    assert_eq!(site.worker.slots.available_permits(), 2);
    assert!(site.is_tidy().await);
}
