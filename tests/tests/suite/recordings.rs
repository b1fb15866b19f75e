//! Recordings over a server that does what servers do: not ready yet, busy, slow, broken, gone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollcall_ops::standin::{Content, Endpoint, Fault, Recording, StandIn};
use rollcall_shared::store;
use rollcall_shared::store::entity::{dead_letter, live_session_recording as recording};
use rollcall_tests::command::rollcall;
use rollcall_tests::installation::{Ingress, Installation, Process};
use rollcall_tests::joins::{self, join};
use rollcall_tests::webhooks::Sender;
use rollcall_tests::{broker, eventually, fixtures};
use sea_orm::{ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(90);

rollcall_tests::on_both_back_ends!(
    the_physics_class_has_one_recording_and_a_thumbnail,
    what_goes_wrong_once_is_tried_again,
    a_recording_that_cannot_be_had_never_looks_ready,
    a_job_whose_worker_is_killed_is_taken_over,
    a_recording_that_kills_its_worker_is_found_to_be_poison,
    a_recording_that_kills_its_worker_long_after_its_delivery_is_found_to_be_poison,
    suspects_of_recordings_keep_no_others_waiting_and_are_fetched_together,
);

/// An installation with a stand-in for its server, an ingress, and whatever recordings workers the test wants.
pub(crate) struct School {
    pub(crate) installation: Installation,
    pub(crate) server: StandIn,
    ingress: Ingress,
    sender: Sender,
}

impl School {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(set: impl FnOnce(&mut Installation)) -> Self {
        Self::on(Installation::new().await, set).await
    }

    pub(crate) async fn on(mut installation: Installation, set: impl FnOnce(&mut Installation)) -> Self {
        let server = StandIn::start("key", &"secret".into()).await.unwrap();
        installation.server("main", "key", "secret", server.url().as_str());
        set(&mut installation);
        let ingress = installation.ingress().await;
        let sender = Sender::new(&installation, "main", ingress.address);
        Self { installation, server, ingress, sender }
    }

    pub(crate) async fn worker(&self) -> Process {
        self.installation.worker("recordings").await
    }

    /// The server has this file as a recording of this id.
    pub(crate) fn has(&self, id: &str, file: &Path) {
        self.server.add_recording(Recording::new(id, "room", "sid", file));
    }

    pub(crate) async fn proceeded(&self, id: &str) {
        self.sender.post(&event("recording_proceeded", id)).await;
    }

    pub(crate) async fn row(&self, id: &str) -> Option<recording::Model> {
        let row = recording::Entity::find().filter(recording::Column::RecordId.eq(id));
        row.one(&self.installation.db).await.unwrap()
    }

    async fn count(&self, status: &str) -> u64 {
        let rows = recording::Entity::find().filter(recording::Column::Status.eq(status));
        rows.count(&self.installation.db).await.unwrap()
    }

    pub(crate) async fn becomes(&self, id: &str, status: &str) -> recording::Model {
        eventually(LIMIT, || async {
            match self.row(id).await {
                Some(row) if row.status == status => Ok(row),
                other => Err(format!("{id} is not {status}: {other:?}")),
            }
        })
        .await
    }

    /// Every file below the media folder.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        fn walk(directory: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(directory).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.installation.media(), &mut files);
        files.sort();
        files
    }

    /// Waits until nothing lies in the media folder but what these rows name.
    pub(crate) async fn only_has(&self, rows: &[&recording::Model]) {
        let keys = rows.iter().flat_map(|row| row.file_key.iter().chain(&row.thumbnail_key));
        let mut expected: Vec<_> = keys.map(|key| self.installation.media().join(key)).collect();
        expected.sort();
        eventually(LIMIT, || async {
            let files = self.files();
            if files == expected { Ok(()) } else { Err(format!("{files:?} is not {expected:?}")) }
        })
        .await;
    }

    async fn nothing_is_dead(&self) {
        let dead = broker::drained(&self.installation, LIMIT).await;
        assert!(dead.is_empty(), "{dead:?}");
    }
}

fn event(event: &str, id: &str) -> String {
    json!({"event": event, "id": format!("{event}-{id}"), "created_at": "1790000000",
           "room": {"sid": "sid", "room_id": "room"},
           "recording_info": {"record_id": id, "recorder_id": "node_01", "file_path": "../../../etc/passwd"}})
    .to_string()
}

/// Two seconds of 1280 × 720, made once.
pub(crate) fn video() -> PathBuf {
    made("class.mp4", &["-f", "lavfi", "-i", "testsrc2=size=1280x720:rate=15:duration=2"])
}

fn voice() -> PathBuf {
    made("voice.mp4", &[])
}

fn made(name: &str, video: &[&str]) -> PathBuf {
    let file = rollcall_tests::services::directory().join(format!("{}-{name}", std::process::id()));
    if !file.exists() {
        // Another test may make it at the same time.
        let part = tempfile::Builder::new().suffix(".mp4").tempfile_in(file.parent().unwrap()).unwrap();
        let made = Command::new("ffmpeg")
            .args(["-nostdin", "-v", "error", "-y"])
            .args(video)
            .args(["-f", "lavfi", "-i", "sine=frequency=440:duration=2", "-pix_fmt", "yuv420p"])
            .arg(part.path())
            .status();
        assert!(made.unwrap().success());
        part.persist(&file).unwrap();
    }
    file
}

fn size(file: &Path) -> i64 {
    std::fs::metadata(file).unwrap().len().try_into().unwrap()
}

async fn the_physics_class_has_one_recording_and_a_thumbnail(installation: Installation) {
    // Whoever finds another worker at it looks again after this long.
    let school = School::on(installation, |installation| installation.set("recordings.lease", "2s")).await;
    let webhooks = &fixtures::classes()["physics-class-with-recording"];
    let bodies: Vec<Value> = webhooks.iter().map(|one| serde_json::from_str(&one.body).unwrap()).collect();
    let ended = bodies.iter().find(|body| body["event"] == "end_recording").unwrap();
    let id = ended["recording_info"]["record_id"].as_str().unwrap();
    let (room_id, sid) = (ended["room"]["room_id"].as_str().unwrap(), ended["room"]["sid"].as_str().unwrap());
    let mut there = Recording::new(id, room_id, sid, video());
    there.title = "Physics فیزیک".into();
    school.server.add_recording(there);
    // At `end_recording` it is still being made.
    school.server.script(Endpoint::Info, [Fault::NotFound, Fault::NotFound]);
    let _workers = (school.worker().await, school.worker().await, school.installation.attendance_and_rooms(1).await);
    for webhook in webhooks {
        school.sender.post(&webhook.body).await;
        school.sender.post(&webhook.body).await;
    }
    let row = school.becomes(id, "ready").await;
    school.nothing_is_dead().await;
    assert_eq!(recording::Entity::find().all(&school.installation.db).await.unwrap().len(), 1);
    assert_eq!(school.server.count(Endpoint::Download), 1, "it was fetched more than once");
    assert_eq!(row.title.as_deref(), Some("Physics فیزیک"));
    assert_eq!((row.width, row.height, row.video_codec.as_deref()), (Some(1280), Some(720), Some("h264")));
    assert_eq!((row.recording_type.as_deref(), row.error.as_deref()), (Some("video"), None));
    assert!((1.9..2.2).contains(&row.duration_seconds.unwrap()), "{row:?}");
    assert!(row.recorded_at.is_some());
    let file = school.installation.media().join(row.file_key.as_ref().unwrap());
    assert_eq!(row.file_size, Some(size(&video())));
    assert_eq!(std::fs::read(&file).unwrap(), std::fs::read(video()).unwrap());
    let sum = Command::new("sha256sum").arg(&file).output().unwrap().stdout;
    assert!(String::from_utf8(sum).unwrap().starts_with(row.sha256.as_ref().unwrap()));
    let thumbnail = school.installation.media().join(row.thumbnail_key.as_ref().unwrap());
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0"])
        .arg(&thumbnail)
        .output();
    assert_eq!(String::from_utf8(probed.unwrap().stdout).unwrap().trim(), "mjpeg,640,360");
    school.only_has(&[&row]).await;
}

async fn what_goes_wrong_once_is_tried_again(installation: Installation) {
    let school = School::on(installation, |_| {}).await;
    let _worker = school.worker().await;
    let half = u64::try_from(size(&video()) / 2).unwrap();
    let second = Duration::from_secs(1);
    let faults = [
        ("429", Endpoint::Info, Fault::too_many_requests(second)),
        ("429-download", Endpoint::Download, Fault::too_many_requests(second)),
        ("500", Endpoint::Info, Fault::status(500)),
        ("500-token", Endpoint::DownloadToken, Fault::status(500)),
        ("502-download", Endpoint::Download, Fault::status(502)),
        ("not-yet", Endpoint::Info, Fault::NotFound),
        ("closed", Endpoint::Info, Fault::Disconnect),
        ("expired-token", Endpoint::Download, Fault::Unauthorized),
        ("cut-off", Endpoint::Download, Fault::CutOff { after_bytes: half }),
        ("too-short", Endpoint::Download, Fault::WrongLength { announced: half * 4 }),
        ("redirect", Endpoint::Download, Fault::Redirect),
        ("slow", Endpoint::Download, Fault::Slow { bytes_per_second: half }),
    ];
    let mut rows = Vec::new();
    for (id, endpoint, fault) in faults {
        school.has(id, &video());
        school.server.script(endpoint, [fault]);
        school.proceeded(id).await;
        let row = school.becomes(id, "ready").await;
        assert_eq!((row.file_size, row.error.as_deref()), (Some(size(&video())), None), "{id}");
        rows.push(row);
    }
    school.nothing_is_dead().await;
    school.only_has(&rows.iter().collect::<Vec<_>>()).await;
    // Each attempt asks for a token of its own.
    let tokens = school.server.count(Endpoint::DownloadToken);
    assert!(tokens >= school.server.count(Endpoint::Download), "{tokens} tokens");
}

async fn a_recording_that_cannot_be_had_never_looks_ready(installation: Installation) {
    let school = School::on(installation, |_| {}).await;
    let worker = school.worker().await;
    // The file is gone, though a token is given for it.
    school.has("gone", &video());
    school.server.script(Endpoint::Download, [Fault::NotFound]);
    school.proceeded("gone").await;
    let gone = school.becomes("gone", "failed").await;
    assert!(gone.error.as_ref().unwrap().contains("404"), "{gone:?}");
    // Never known to the server: as often as the schedule says.
    school.proceeded("never").await;
    let never = school.becomes("never", "failed").await;
    assert!(never.error.as_ref().unwrap().contains("recording not found"), "{never:?}");
    // HTML instead of a video, with status 200, for ever.
    school.has("html", &video());
    school.server.script(Endpoint::Download, vec![Fault::Html; 10]);
    school.proceeded("html").await;
    let html = school.becomes("html", "failed").await;
    for row in [&gone, &never, &html] {
        assert_eq!((row.file_key.as_ref(), row.thumbnail_key.as_ref(), row.file_size), (None, None, None));
    }
    school.only_has(&[]).await;
    let dead = broker::drained(&school.installation, LIMIT).await;
    assert_eq!(dead.into_iter().collect::<Vec<_>>(), [("recordings.dead".to_owned(), 3)]);
    worker.stop().await;
    for (body, headers) in broker::dead(&school.installation, "recordings").await {
        let kind = if body.contains("gone") { "permanent" } else { "exhausted" };
        if !body.contains("html") {
            assert_eq!(headers["rollcall-dead-kind"], kind, "{body} {headers:?}");
        }
    }
}

#[tokio::test]
async fn a_wrong_secret_is_told_and_does_not_stand_in_any_log() {
    let school = School::with(|installation| {
        let url = installation.keys("main").url.clone();
        installation.server("other", "key", "hunter2-is-wrong", &url);
    })
    .await;
    let worker = school.worker().await;
    let other = Sender::new(&school.installation, "other", school.ingress.address);
    other.post(&event("recording_proceeded", "secret")).await;
    let row = school.becomes("secret", "failed").await;
    assert!(row.error.as_ref().unwrap().contains("401"), "{row:?}");
    assert!(!format!("{row:?}{}", worker.log()).contains("hunter2"));
}

#[tokio::test]
async fn a_voice_recording_has_no_picture() {
    let school = School::new().await;
    let _worker = school.worker().await;
    // The name says video; the content decides.
    school.has("voice", &voice());
    school.proceeded("voice").await;
    let row = school.becomes("voice", "ready").await;
    assert_eq!((row.recording_type.as_deref(), row.thumbnail_key.as_ref(), row.width), (Some("voice"), None, None));
    school.only_has(&[&row]).await;
}

#[tokio::test]
async fn a_thumbnail_that_cannot_be_made_leaves_the_recording() {
    for (how, script) in
        [("fails", "#!/bin/sh\necho no such filter >&2\nexit 1\n"), ("hangs", "#!/bin/sh\nsleep 1000 &\nwait\n")]
    {
        let school = School::with(|installation| {
            let ffmpeg = installation.directory.join(format!("ffmpeg-that-{how}"));
            std::fs::write(&ffmpeg, script).unwrap();
            std::fs::set_permissions(&ffmpeg, std::fs::Permissions::from_mode(0o755)).unwrap();
            installation.set("recordings.ffmpeg", ffmpeg.display());
            installation.set("recordings.ffmpeg_timeout", "2s");
        })
        .await;
        let worker = school.worker().await;
        school.has("plain", &video());
        school.proceeded("plain").await;
        let row = school.becomes("plain", "ready").await;
        assert_eq!((row.thumbnail_key.as_ref(), row.width), (None, Some(1280)), "{how}");
        assert!(row.error.as_ref().unwrap().contains("thumbnail"), "{how}: {row:?}");
        school.only_has(&[&row]).await;
        let children = format!("/proc/{0}/task/{0}/children", worker.id());
        assert_eq!(std::fs::read_to_string(children).unwrap().trim(), "", "{how}: it has left children");
        let sleeping = Command::new("pgrep").args(["-f", "^sleep 1000$"]).output().unwrap().stdout;
        assert_eq!(String::from_utf8(sleeping).unwrap().trim(), "", "{how}: a child of ffmpeg goes on");
        worker.stop().await;
    }
}

#[tokio::test]
async fn a_missing_ffmpeg_is_named() {
    let school = School::with(|installation| {
        installation.set("recordings.ffprobe", "/nowhere/ffprobe");
        installation.set("recordings.ffmpeg", "/nowhere/ffmpeg");
    })
    .await;
    let _worker = school.worker().await;
    school.has("unseen", &video());
    school.proceeded("unseen").await;
    let row = school.becomes("unseen", "failed").await;
    assert!(row.error.as_ref().unwrap().contains("recordings.ffprobe"), "{row:?}");
    school.only_has(&[]).await;
}

#[tokio::test]
async fn a_job_that_takes_long_goes_on_without_its_delivery_and_is_done_once() {
    let school = School::with(|installation| {
        installation.set("recordings.hold", "500ms");
        installation.set("recordings.lease", "3s");
    })
    .await;
    let _workers = (school.worker().await, school.worker().await);
    school.has("long", &video());
    school.server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: size(&video()) as u64 / 6 }]);
    for _ in 0..3 {
        school.sender.post(&event("end_recording", "long")).await;
        school.proceeded("long").await;
    }
    let row = school.becomes("long", "ready").await;
    school.nothing_is_dead().await;
    assert_eq!(school.server.count(Endpoint::Download), 1);
    school.only_has(&[&row]).await;
}

#[tokio::test]
async fn a_job_that_is_alive_keeps_its_file_when_another_worker_clears_up() {
    let school = School::with(|installation| {
        installation.set("recordings.concurrency", 1);
        installation.set("recordings.lease", "1m");
    })
    .await;
    let busy = school.worker().await;
    school.has("long", &video());
    school.server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: size(&video()) as u64 / 12 }]);
    // It takes two deliveries and works on one: whatever comes next is the other worker's.
    school.proceeded("long").await;
    school.proceeded("long").await;
    let part =
        eventually(LIMIT, || async { school.files().pop().ok_or_else(|| "the download has not begun".to_owned()) })
            .await;
    let other = school.worker().await;
    // As it is when the database was away for longer than a lease lasts, and the job has not renewed it yet.
    let expire = "UPDATE recording_lease SET expires_at = now() - interval '1 minute'";
    school.installation.db.execute_unprepared(expire).await.unwrap();
    school.has("short", &video());
    school.proceeded("short").await;
    let short = school.becomes("short", "ready").await;
    assert_eq!(school.row("long").await.unwrap().status, "processing", "the download was not slow enough");
    assert!(part.exists(), "{}", other.log());
    let long = school.becomes("long", "ready").await;
    assert_eq!(school.server.count(Endpoint::Download), 2);
    school.nothing_is_dead().await;
    school.only_has(&[&short, &long]).await;
    assert_eq!(busy.log().matches("a recording is archived").count(), 1, "the other one was not at work");
}

#[tokio::test]
async fn a_nul_in_a_title_is_no_reason_to_lose_a_recording() {
    let school = School::new().await;
    let worker = school.worker().await;
    let mut there = Recording::new("titled", "room", "sid", video());
    there.title = "Alge\0bra".into();
    school.server.add_recording(there);
    let metadata = json!({"room_title": "Alge\0bra"}).to_string();
    let mut body: Value = serde_json::from_str(&event("recording_proceeded", "titled")).unwrap();
    body["room"]["metadata"] = metadata.into();
    school.sender.post(&body.to_string()).await;
    let row = school.becomes("titled", "ready").await;
    assert_eq!(row.title.as_deref(), Some("Alge bra"));
    school.nothing_is_dead().await;
    worker.stop().await;
}

async fn a_job_whose_worker_is_killed_is_taken_over(installation: Installation) {
    let school = School::on(installation, |installation| {
        installation.set("recordings.hold", "500ms");
        installation.set("recordings.lease", "2s");
    })
    .await;
    let worker = school.worker().await;
    school.has("orphan", &video());
    school.server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: size(&video()) as u64 / 60 }]);
    school.proceeded("orphan").await;
    eventually(LIMIT, || async {
        let begun = !school.files().is_empty();
        if begun { Ok(()) } else { Err("the download has not begun") }.map_err(str::to_owned)
    })
    .await;
    worker.kill().await;
    let worker = school.worker().await;
    let row = school.becomes("orphan", "ready").await;
    assert_eq!(row.file_size, Some(size(&video())));
    school.nothing_is_dead().await;
    school.only_has(&[&row]).await;
    worker.stop().await;
}

/// A program in the place of another, which does what the script says.
pub(crate) fn program(installation: &Installation, name: &str, script: &str) -> PathBuf {
    let program = installation.directory.join(name);
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

async fn a_recording_that_kills_its_worker_is_found_to_be_poison(installation: Installation) {
    kills_no_more_than_three(installation, "3m", "").await;
}

async fn a_recording_that_kills_its_worker_long_after_its_delivery_is_found_to_be_poison(installation: Installation) {
    kills_no_more_than_three(installation, "100ms", "sleep 1").await;
}

/// An ffprobe that takes its worker along, after so long; a supervisor that starts that again.
async fn kills_no_more_than_three(installation: Installation, hold: &str, first: &str) {
    let school = School::on(installation, |installation| {
        let kills = installation.directory.join("kills").display().to_string();
        let ffprobe = program(installation, "ffprobe", &format!("{first}\necho >> {kills}\nkill -9 $PPID"));
        installation.set("recordings.ffprobe", ffprobe.display());
        installation.set("recordings.lease", "1s");
        installation.set("recordings.hold", hold);
    })
    .await;
    let kills = || std::fs::read_to_string(school.installation.directory.join("kills")).unwrap_or_default().len();
    school.has("poison", &video());
    // Both ask for the same recording.
    school.sender.post(&event("end_recording", "poison")).await;
    school.proceeded("poison").await;
    let mut worker = school.worker().await;
    let both_are_dead = async {
        loop {
            let dead = broker::depths(&school.installation).await.unwrap();
            // One that was on its way when its worker was killed may be there twice; it is stored once.
            if dead.len() == 1 && dead.get("recordings.dead").is_some_and(|dead| *dead >= 2) {
                return;
            }
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(200), worker.ended()).await {
                assert!(!ended.success());
                worker = school.worker().await;
            }
        }
    };
    tokio::time::timeout(LIMIT, both_are_dead).await.unwrap_or_else(|_| panic!("{} kills, and no end", kills()));
    assert_eq!(kills(), 3);
    let row = school.row("poison").await.unwrap();
    assert_eq!((row.status.as_str(), row.file_key.as_ref()), ("failed", None));
    assert!(row.error.as_ref().unwrap().contains("whoever fetches it dies"), "{row:?}");
    let storing = school.installation.spawn("rollcall-worker", &["dead-letters"]);
    let letters = eventually(LIMIT, || async {
        let letters = dead_letter::Entity::find().all(&school.installation.db).await.unwrap();
        if letters.len() == 2 { Ok(letters) } else { Err(format!("{} are stored", letters.len())) }
    })
    .await;
    assert!(letters.iter().all(|letter| letter.kind == "poison" && letter.cause == "poison"), "{letters:?}");

    // Whatever it was is mended: the count begins anew, and what is left of the killed is swept away.
    program(&school.installation, "ffprobe", "exec ffprobe \"$@\"");
    let replayed = rollcall(&school.installation, &["dlq", "replay", "--cause", "poison", "--yes", "--wait"]).await;
    assert!(replayed.success && replayed.stdout.contains("2 applied, 0 died again"), "{replayed:?}");
    let row = school.becomes("poison", "ready").await;
    assert_eq!(kills(), 3);
    school.only_has(&[&row]).await;
    storing.stop().await;
}

async fn suspects_of_recordings_keep_no_others_waiting_and_are_fetched_together(installation: Installation) {
    const RECORDINGS: usize = 4;
    let school = School::on(installation, |installation| installation.set("recordings.lease", "1s")).await;
    let slow = Fault::Slow { bytes_per_second: u64::try_from(size(&video()) / 40).unwrap() };
    school.server.script(Endpoint::Download, vec![slow; 3 * RECORDINGS]);
    let up = school.installation.up().await;
    for number in 0..RECORDINGS {
        school.has(&format!("r-{number}"), &video());
        school.proceeded(&format!("r-{number}")).await;
    }
    let fetching = |times: usize| {
        let school = &school;
        eventually(LIMIT, move || async move {
            let begun = school.server.count(Endpoint::Download);
            if begun >= times { Ok(()) } else { Err(format!("{begun} of {times} are being fetched")) }
        })
    };
    fetching(RECORDINGS).await;
    // Joins that the worker has, and that wait for the database.
    let held = store::begin(&school.installation.db).await.unwrap();
    held.execute_unprepared("UPDATE course_live_session SET subject = 'held'").await.unwrap();
    for number in 0..10 {
        school.sender.post(&join("room", &format!("user-{number}")).to_string()).await;
    }
    eventually(LIMIT, || async {
        let ready = broker::depths(&school.installation).await?;
        if ready.is_empty() { Ok(()) } else { Err(format!("{ready:?}")) }
    })
    .await;
    up.process.kill().await;
    held.rollback().await.unwrap();
    // As if it had died a while ago: whoever asks next has them at once.
    school.installation.db.execute_unprepared("DELETE FROM recording_lease").await.unwrap();

    let up = school.installation.up().await;
    let limit = Duration::from_secs(8);
    tokio::join!(joins::applied(&school.installation, 10, limit), fetching(2 * RECORDINGS));
    assert_eq!(school.count("processing").await, RECORDINGS as u64, "the downloads were not slow enough");
    up.process.stop().await;
}

#[tokio::test]
async fn a_worker_that_is_stopped_leaves_its_jobs_to_the_next() {
    let school = School::new().await;
    let worker = school.worker().await;
    school.has("stopped", &video());
    school.server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: size(&video()) as u64 / 60 }]);
    school.proceeded("stopped").await;
    eventually(LIMIT, || async {
        if school.files().is_empty() { Err("the download has not begun".to_owned()) } else { Ok(()) }
    })
    .await;
    worker.stop().await;
    school.only_has(&[]).await;
    let _next = school.worker().await;
    let row = school.becomes("stopped", "ready").await;
    school.nothing_is_dead().await;
    school.only_has(&[&row]).await;
}

#[tokio::test]
async fn names_of_another_machine_are_no_paths() {
    let school = School::new().await;
    let _worker = school.worker().await;
    let id = "../../../../tmp/rollcall-was-here\0/x".replace('\0', "");
    let mut there = Recording::new(&id, "room", "sid", video());
    there.file_path = "/etc/passwd".into();
    there.title = "../../../../tmp/rollcall-was-here/../title".into();
    school.server.add_recording(there);
    school.proceeded(&id).await;
    let row = school.becomes(&id, "ready").await;
    school.only_has(&[&row]).await;
    let name = row.file_name.unwrap();
    assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
    assert!(!Path::new("/tmp/rollcall-was-here").exists());
}

#[tokio::test]
async fn an_older_server_and_one_with_ranges_in_front_are_understood() {
    let school = School::new().await;
    let _worker = school.worker().await;
    school.server.be_old(true);
    school.has("old", &video());
    school.proceeded("old").await;
    school.becomes("old", "ready").await;
    school.server.be_old(false);

    school.server.honour_range(true);
    let half = u64::try_from(size(&video()) / 2).unwrap();
    school
        .server
        .add_recording(Recording { content: Content::File(video()), ..Recording::new("range", "room", "sid", "") });
    school.server.script(Endpoint::Download, [Fault::CutOff { after_bytes: half }]);
    school.proceeded("range").await;
    let row = school.becomes("range", "ready").await;
    assert_eq!(row.file_size, Some(size(&video())));
    let asked_for_the_rest = school.server.requests().iter().any(|seen| seen.range.is_some());
    assert!(asked_for_the_rest, "the file was fetched anew");
    school.nothing_is_dead().await;
}

/// Enough to be more than anybody mends one by one.
const KILLED: usize = 500;

#[tokio::test]
async fn an_outage_that_has_killed_500_recordings_is_healed_by_one_command() {
    let school = School::with(|installation| {
        installation.set("recordings.retry", "20ms,40ms");
        installation.set("recordings.concurrency", "8");
    })
    .await;
    let voice = voice();
    for number in 0..KILLED {
        school.has(&format!("r-{number}"), &voice);
    }
    // What a proxy says while the server behind it is away, to each try of each.
    let away = [502, 503, 504].map(Fault::status).into_iter().cycle();
    school.server.script(Endpoint::Info, away.take(3 * KILLED));
    let (worker, storing) = (school.worker().await, school.installation.spawn("rollcall-worker", &["dead-letters"]));
    for number in 0..KILLED {
        school.proceeded(&format!("r-{number}")).await;
    }
    let groups = eventually(LIMIT, || async {
        let groups = rollcall(&school.installation, &["dlq", "groups", "--json"]).await;
        let groups: Value = serde_json::from_str(&groups.stdout).map_err(|error| format!("{error}: {groups:?}"))?;
        let died: u64 =
            groups["groups"].as_array().into_iter().flatten().filter_map(|group| group["count"].as_u64()).sum();
        if died == KILLED as u64 { Ok(groups) } else { Err(groups.to_string()) }
    })
    .await;
    let causes = groups["groups"].as_array().unwrap();
    assert_eq!(causes.len(), 1, "{groups}");
    assert_eq!((&causes[0]["cause"], &causes[0]["worker"]), (&json!("plugnmeet-away"), &json!("recordings")));
    assert_eq!(school.count("failed").await, KILLED as u64);

    // It is back.
    let arguments = ["dlq", "replay", "--cause", "plugnmeet-away", "--yes", "--wait", "--reason", "the server is back"];
    let healed = rollcall(&school.installation, &arguments).await;
    assert!(healed.success, "{healed:?}");
    let said = healed.stdout;
    assert!(said.contains(&format!("{KILLED} applied, 0 died again")), "{said}");
    assert_eq!(school.count("ready").await, KILLED as u64);
    school.nothing_is_dead().await;
    let left = rollcall(&school.installation, &["dlq", "groups"]).await;
    assert!(left.success && !left.stdout.contains("plugnmeet-away"), "{left:?}");
    worker.stop().await;
    storing.stop().await;
}
