//! The programs, the broker, the clocks and the disk, and how each step is done to them.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rollcall_shared::store::entity::{
    course_live_session, dead_letter, dead_letter_change, dead_letter_failure, live_session_interval,
    live_session_recording, live_session_start, live_session_user, recording_lease, worker_pause, worker_process,
};
use sea_orm::EntityTrait as _;
use tokio::time::sleep;

use super::plan::{BackEnd, Plan, Weather};
use crate::installation::{Installation, Process};
use crate::services::{self, Server};

/// What is loaded into a program to have its clock jump, of Debian's package `faketime`.
fn libfaketime() -> PathBuf {
    format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH).into()
}

/// How large the disk of a queue file is that is to be full, in MB: Rollcall leaves 64 MiB free.
const DISK: usize = 100;
/// A broker that is killed within a second or two of a quorum queue's declaration forgets it.
const SETTLING: Duration = Duration::from_secs(3);

/// One installation, and what is around it.
pub(super) struct World {
    pub(super) installation: Installation,
    pub(super) broker: Option<Server>,
    pub(super) disk: Option<Disk>,
    pub(super) clock: Option<Clock>,
    /// A short recording.
    pub(super) recording: PathBuf,
}

impl World {
    pub(super) async fn new(back_end: BackEnd) -> Self {
        let (broker, mut installation) = match back_end {
            BackEnd::Files => (None, Installation::on_files().await),
            BackEnd::Servers => {
                let broker = Server::rabbitmq(&format!("model-{}", uuid::Uuid::new_v4().simple())).await;
                let installation = Installation::on(&broker.url, &services::shared_postgres()).await;
                (Some(broker), installation)
            }
        };
        let disk = Disk::mount().filter(|_| back_end == BackEnd::Files);
        match &disk {
            Some(disk) => installation.broker_url = format!("sqlite://{}", disk.path.join("queue.db").display()),
            None if back_end == BackEnd::Files => println!("skipped: full disks (nothing can be mounted here)"),
            None => {}
        }
        let clock = Clock::new(&installation.directory);
        if clock.is_none() {
            println!("skipped: clocks that jump (Debian's package faketime is not installed)");
        }
        let recording = installation.directory.join("voice.mp4");
        let made = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "sine=frequency=440:duration=0.2"])
            .arg(&recording)
            .status();
        assert!(made.unwrap().success());
        let world = Self { installation, broker, disk, clock, recording };
        world.declare().await;
        world
    }

    /// Everything is declared before anything breaks.
    async fn declare(&self) {
        for worker in ["attendance", "rooms", "recordings"] {
            self.installation.worker(worker).await.stop().await;
        }
        if self.broker.is_some() {
            sleep(SETTLING).await;
        }
    }

    /// Makes everything as new, with the settings of this plan.
    pub(super) async fn prepare(&mut self, plan: &Plan) {
        let is_calm = matches!(plan.weather, Weather::Calm | Weather::Refusals);
        let settings = [
            ("sessions.unknown", if plan.must_announce { "reject" } else { "create" }.to_owned()),
            ("workers.batch_size", plan.batch_size.to_string()),
            // What is not confirmed in time is published by the spool once more: a copy.
            ("ingress.confirm_timeout", if is_calm { "30s" } else { "500ms" }.to_owned()),
            ("recordings.hold", format!("{}s", plan.hold.as_secs())),
            ("recordings.lease", "1s".to_owned()),
            ("recordings.read_timeout", "10s".to_owned()),
        ];
        for (name, value) in settings {
            self.installation.set(name, value);
        }
        self.empty_tables().await;
    }

    async fn empty_tables(&self) {
        macro_rules! empty {
            ($($table:ident),+) => { $($table::Entity::delete_many().exec(&self.installation.db).await.unwrap();)+ };
        }
        empty!(recording_lease, live_session_recording, live_session_user, live_session_interval, live_session_start);
        empty!(course_live_session, dead_letter_failure, dead_letter_change, dead_letter, worker_pause, worker_process);
    }

    /// Starts a worker, whose clock can be set.
    pub(super) fn spawn_worker(&self, name: &str) -> Process {
        match &self.clock {
            Some(clock) => {
                let process = self.installation.spawn_by(&clock.environment(), "rollcall-worker", &[name]);
                clock.shown_to.lock().unwrap().push(process.id());
                process
            }
            None => self.installation.spawn("rollcall-worker", &[name]),
        }
    }
}

/// The clock of the workers, by libfaketime.
pub(super) struct Clock {
    file: PathBuf,
    /// The processes that have had it.
    shown_to: Mutex<Vec<u32>>,
}

impl Clock {
    fn new(directory: &Path) -> Option<Self> {
        if !libfaketime().exists() {
            return None;
        }
        let clock = Self { file: directory.join("clock"), shown_to: Mutex::default() };
        clock.set(0);
        Some(clock)
    }

    /// So many seconds ahead, or behind.
    pub(super) fn set(&self, seconds: i64) {
        // By a rename: nobody reads half of it.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}\n")).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// What is put before a program so that it has this clock.
    fn environment(&self) -> [String; 5] {
        [
            "env".to_owned(),
            format!("LD_PRELOAD={}", libfaketime().display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ]
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        // What libfaketime leaves behind in a process that is killed.
        for process in self.shown_to.lock().unwrap().iter() {
            let _ = fs::remove_file(format!("/dev/shm/faketime_shm_{process}"));
            let _ = fs::remove_file(format!("/dev/shm/sem.faketime_sem_{process}"));
        }
    }
}

/// A small disk of the queue's own. Whichever way this process ends, it is unmounted then.
pub(super) struct Disk {
    path: PathBuf,
    keeper: Child,
}

impl Disk {
    /// None where nothing can be mounted.
    fn mount() -> Option<Self> {
        let path = std::env::temp_dir().join(format!("rollcall-disk-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).unwrap();
        // Ends when its input does. Not of the run, for with-services would kill it before.
        let script = r#"trap '' INT TERM HUP
            mount -t tmpfs -o "size=$2m" rollcall-disk "$1" || { rmdir "$1"; exit 1; }
            echo mounted; cat; umount --lazy "$1" && rmdir "$1""#;
        let mut keeper = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&path)
            .arg(DISK.to_string())
            .env_remove("ROLLCALL_TEST_DIR")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut answer = [0; 8];
        let mounted = std::io::Read::read(keeper.stdout.as_mut().expect("it was asked for"), &mut answer).unwrap() > 0;
        mounted.then_some(Self { path, keeper })
    }

    /// Leaves so many bytes free.
    pub(super) fn fill_up_to(&self, left: u64) {
        self.make_room();
        let disk = rustix::fs::statvfs(&self.path).unwrap();
        let more = (disk.f_bavail * disk.f_frsize).saturating_sub(left);
        let mut filler = fs::File::create(self.filler()).unwrap();
        // Somebody else may have been quicker with the last bytes.
        let _ = filler.write_all(&vec![1; usize::try_from(more).unwrap()]);
    }

    pub(super) fn make_room(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}
