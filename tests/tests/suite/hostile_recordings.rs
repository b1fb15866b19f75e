//! Recordings from a server that wishes this machine ill, or merely has a long one: what of the machine they may take.

#![allow(clippy::print_stdout, reason = "what is skipped is said")]

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rollcall_ops::standin::{Content, Endpoint, Fault, Recording};
use rollcall_shared::store::entity::live_session_recording as recording;
use rollcall_tests::installation::{Installation, Process};
use rollcall_tests::{broker, eventually};

use crate::recordings::{School, program, video};

const LIMIT: Duration = Duration::from_secs(60);

rollcall_tests::on_both_back_ends!(a_recording_waits_for_room_before_its_first_byte);

async fn on_files(set: impl FnOnce(&mut Installation)) -> School {
    School::on(Installation::on_files().await, set).await
}

/// Waits until a recording is given up, and that at its first try; what its row says then.
async fn dies_at_once(school: &School, id: &str) -> recording::Model {
    let before = school.server.count(Endpoint::Download);
    school.proceeded(id).await;
    let row = school.becomes(id, "failed").await;
    assert_eq!(school.server.count(Endpoint::Download) - before, 1, "{id} was tried again: {row:?}");
    row
}

fn error(row: &recording::Model) -> &str {
    row.error.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn a_recording_that_says_it_is_too_long_is_not_begun() {
    let school = on_files(|_| {}).await;
    let worker = school.worker().await;
    school.has("pebibyte", &video());
    school.server.script(Endpoint::Download, [Fault::WrongLength { announced: 1 << 50 }]);
    let row = dies_at_once(&school, "pebibyte").await;
    assert!(error(&row).contains("recordings.max_bytes"), "{row:?}");
    school.only_has(&[]).await;
    worker.stop().await;
    let (_, headers) = broker::dead(&school.installation, "recordings").await.pop().unwrap();
    let why = ["rollcall-dead-kind", "rollcall-dead-cause"].map(|header| headers[header].as_str());
    assert_eq!(why, ["permanent", "recording-too-long"]);
}

#[tokio::test]
async fn a_recording_that_does_not_say_how_long_it_is_ends_at_what_it_may_be() {
    const MOST: u64 = 1 << 20;
    let school = on_files(|installation| installation.set("recordings.max_bytes", MOST)).await;
    let _worker = school.worker().await;
    // 100 MB, if nobody ends it.
    let endless = Recording { content: Content::Zeros(100 << 20), ..Recording::new("endless", "room", "sid", "") };
    school.server.add_recording(endless);
    school.server.script(Endpoint::Download, [Fault::NoLength]);
    let row = dies_at_once(&school, "endless").await;
    assert!(error(&row).contains("recordings.max_bytes"), "{row:?}");
    school.only_has(&[]).await;
    // Up to it, all is well.
    assert!(std::fs::metadata(video()).unwrap().len() < MOST);
    school.has("short", &video());
    school.server.script(Endpoint::Download, [Fault::NoLength]);
    school.proceeded("short").await;
    school.becomes("short", "ready").await;
}

/// Waits until a recording has waited for room more often than its schedule has tries, and is none the worse for it.
async fn waits_for_room(school: &School, id: &str) {
    let mut last_look = None;
    for _ in 0..6 {
        let look = eventually(LIMIT, || async {
            match school.row(id).await {
                Some(row) if row.status == "processing" && error(&row).contains("recordings.min_free_bytes") => {
                    let look = Some(row.updated_at);
                    if look == last_look { Err("it does not look again".to_owned()) } else { Ok(look) }
                }
                other => Err(format!("it does not wait for room: {other:?}")),
            }
        })
        .await;
        last_look = look;
    }
}

async fn a_recording_waits_for_room_before_its_first_byte(installation: Installation) {
    let mut school = School::on(installation, |installation| {
        installation.set("recordings.min_free_bytes", i64::MAX);
        installation.set("recordings.lease", "1s");
    })
    .await;
    let worker = school.worker().await;
    school.has("patient", &video());
    school.proceeded("patient").await;
    waits_for_room(&school, "patient").await;
    assert_eq!(school.server.requests(), [], "a server was asked in vain");
    assert_eq!(worker.log().matches("recordings wait for room").count(), 1, "{}", worker.tail());
    worker.stop().await;

    school.installation.set("recordings.min_free_bytes", 0);
    let worker = school.worker().await;
    school.becomes("patient", "ready").await;
    assert_eq!(school.server.count(Endpoint::Download), 1);
    assert_eq!(broker::drained(&school.installation, LIMIT).await, BTreeMap::new());
    worker.stop().await;
}

/// A recordings worker whose media lie on a small disk, of which so much is taken already. None where nothing can be mounted.
async fn worker_on_a_small_disk(school: &School, mib: u32, taken: u32) -> Option<Process> {
    let may_mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may_mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: this machine lets us mount nothing");
        return None;
    }
    std::fs::create_dir_all(school.installation.media()).unwrap();
    let script = format!(
        "mount -t tmpfs -o size={mib}m rollcall-disk media && head -c {taken}M /dev/zero >media/filler && exec \"$@\""
    );
    let by = ["unshare", "--mount", "sh", "-c", &script, "sh"];
    let worker = school.installation.spawn_by(&by, "rollcall-worker", &["recordings"]);
    worker.logs("taking deliveries").await;
    Some(worker)
}

#[tokio::test]
async fn a_recording_that_takes_the_room_of_others_is_put_off_and_removed_meanwhile() {
    let school = on_files(|installation| {
        installation.set("recordings.min_free_bytes", 16 << 20);
        installation.set("recordings.lease", "1s");
    })
    .await;
    // A film, and 30 MB that no player looks at, of which only their coming tells.
    let film = school.installation.directory.join("long.mp4");
    let bytes = [std::fs::read(video()).unwrap(), vec![0; 30 << 20]].concat();
    std::fs::write(&film, &bytes).unwrap();
    school.has("long", &film);
    school.server.script(Endpoint::Download, vec![Fault::NoLength; 1000]);
    let Some(worker) = worker_on_a_small_disk(&school, 64, 20).await else { return };
    school.proceeded("long").await;
    waits_for_room(&school, "long").await;
    // As the worker sees it.
    let media = Path::new("/proc")
        .join(worker.id().to_string())
        .join("root")
        .join(school.installation.media().strip_prefix("/").unwrap());
    let disk = rustix::fs::statvfs(&media).unwrap();
    assert!(disk.f_bavail * disk.f_frsize < 48 << 20, "this is not the small disk");
    let least_free = least_free_during(&media, || async { waits_for_room(&school, "long").await }).await;
    assert!(least_free >= 8 << 20, "only {least_free} bytes were left to the queue");

    std::fs::remove_file(media.join("filler")).unwrap();
    let row = school.becomes("long", "ready").await;
    assert_eq!((row.file_size, row.error.as_deref()), (Some(bytes.len().try_into().unwrap()), None));
    let kept = std::fs::metadata(media.join(row.file_key.unwrap())).unwrap();
    assert_eq!(kept.size(), bytes.len() as u64);
    worker.stop().await;
}

/// How little was free on a disk meanwhile, in bytes.
async fn least_free_during<F: Future<Output = ()>>(folder: &Path, done: impl FnOnce() -> F) -> u64 {
    let mut least = u64::MAX;
    let watch = async {
        loop {
            let disk = rustix::fs::statvfs(folder).unwrap();
            least = least.min(disk.f_bavail * disk.f_frsize);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        () = watch => {}
        () = done() => {}
    }
    least
}

#[tokio::test]
async fn a_server_that_drips_is_let_go() {
    // Ten times this is what it is measured over.
    let school = on_files(|installation| installation.set("recordings.read_timeout", "1s")).await;
    let _worker = school.worker().await;
    school.has("drips", &video());
    school.server.script(Endpoint::Download, [Fault::Slow { bytes_per_second: 10 }]);
    school.proceeded("drips").await;
    let told = eventually(LIMIT, || async {
        let row = school.row("drips").await;
        row.and_then(|row| row.error).ok_or_else(|| "it goes on".to_owned())
    })
    .await;
    assert!(told.contains("recordings.min_rate"), "{told}");
    school.becomes("drips", "ready").await;
}

/// An address of this machine in a private network, if it is in one.
fn private_address() -> Option<IpAddr> {
    // Nothing is sent to them: they are nobody's.
    let sources = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")].map(|(from, to)| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    sources.into_iter().flatten().find(|address| match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    })
}

#[tokio::test]
async fn a_redirect_into_a_network_of_others_is_not_followed() {
    let school = on_files(|_| {}).await;
    let worker = school.worker().await;
    // The stand-in is on loopback.
    let bait = private_address().and_then(|address| TcpListener::bind((address, 0)).ok());
    let own = bait.as_ref().map(|bait| format!("http://{}/", bait.local_addr().unwrap()));
    let elsewhere = ["http://169.254.169.254/latest/meta-data/iam/", "http://10.255.255.1/", "http://[fe80::1]/"];
    for (number, to) in elsewhere.map(str::to_owned).into_iter().chain(own).enumerate() {
        let id = format!("redirect-{number}");
        school.has(&id, &video());
        school.server.script(Endpoint::Download, [Fault::RedirectTo(to.clone())]);
        let row = dies_at_once(&school, &id).await;
        assert!(error(&row).contains("recordings.redirect_hosts"), "{to}: {row:?}");
    }
    if let Some(bait) = bait {
        bait.set_nonblocking(true).unwrap();
        assert!(bait.accept().is_err(), "it was followed");
    }
    // To where the server is itself, it is.
    school.has("well", &video());
    school.server.script(Endpoint::Download, [Fault::Redirect]);
    school.proceeded("well").await;
    school.becomes("well", "ready").await;
    worker.stop().await;
    for (body, headers) in broker::dead(&school.installation, "recordings").await {
        assert_eq!(headers["rollcall-dead-cause"], "redirect-refused", "{body}");
    }
}

/// The first lines of a program that waits until its limits are set, which happens when it runs already.
const LIMITED: &str = "for i in $(seq 100); do grep -q 'Max open files *64 ' /proc/$$/limits && break; sleep 0.1; done";

#[tokio::test]
async fn ffmpeg_and_ffprobe_know_no_secret_and_may_need_only_so_much() {
    const PROGRAMS: [&str; 2] = ["ffprobe", "ffmpeg"];
    let school = on_files(|installation| {
        for name in PROGRAMS {
            let script = format!(
                "{LIMITED}\ncat /proc/$$/limits >{name}.limits\ntr '\\0' '\\n' </proc/$$/environ >{name}.environment\n\
                 exec {name} \"$@\""
            );
            installation.set(&format!("recordings.{name}"), program(installation, name, &script).display());
        }
        installation.set("recordings.ffmpeg_timeout", "1m");
    })
    .await;
    let secrets = ["env", "AWS_SECRET_ACCESS_KEY=hunter2", "ROLLCALL__PLUGNMEET__MAIN__PREVIOUS_SECRET=hunter2-2"];
    let worker = school.installation.spawn_by(&secrets, "rollcall-worker", &["recordings"]);
    worker.logs("taking deliveries").await;
    school.has("looked-at", &video());
    school.proceeded("looked-at").await;
    let row = school.becomes("looked-at", "ready").await;
    assert!(row.thumbnail_key.is_some(), "{row:?}");
    for name in PROGRAMS {
        let read =
            |what| std::fs::read_to_string(school.installation.directory.join(format!("{name}.{what}"))).unwrap();
        let limits = read("limits");
        for (limit, soft, hard) in [
            ("Max cpu time", "30", "31"),
            ("Max data size", "536870912", "536870912"),
            ("Max file size", "16777216", "16777216"),
            ("Max open files", "64", "64"),
            ("Max core file size", "0", "0"),
        ] {
            let line = limits.lines().find_map(|line| line.strip_prefix(limit)).unwrap();
            let set: Vec<_> = line.split_whitespace().take(2).collect();
            assert_eq!(set, [soft, hard], "{name}: {limit}");
        }
        let environment = read("environment");
        let mut known: Vec<_> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
        known.sort_unstable();
        assert_eq!(known, ["LANG", "PATH"], "{name}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn what_a_limit_has_ended_is_dead_at_once() {
    let school = on_files(|installation| {
        let ffprobe = program(installation, "ffprobe", "exit 1");
        installation.set("recordings.ffprobe", ffprobe.display());
        installation.set("recordings.ffmpeg", "/nowhere/ffmpeg");
        installation.set("recordings.ffmpeg_timeout", "6s");
    })
    .await;
    let worker = school.worker().await;
    for (id, ffprobe, words) in [
        ("time", "while :; do :; done", "processor time"),
        (
            "memory",
            // Nothing is written to it: it is asked for, and that is all.
            "dd if=/dev/null of=/dev/null bs=1G count=1 2>/dev/null && exec ffprobe \"$@\"\n\
             echo \"$0: Cannot allocate memory\" >&2\nexit 1",
            "more memory",
        ),
        ("file", "exec head -c 20000000 /dev/zero >written", "longer file"),
        ("crash", "kill -SEGV $$", "crashed"),
    ] {
        program(&school.installation, "ffprobe", &format!("{LIMITED}\n{ffprobe}"));
        school.has(id, &video());
        let row = dies_at_once(&school, id).await;
        assert!(error(&row).contains(words), "{row:?}");
    }
    school.only_has(&[]).await;
    worker.stop().await;
    for (body, headers) in broker::dead(&school.installation, "recordings").await {
        assert_eq!(headers["rollcall-dead-cause"], "recording-too-costly", "{body}");
    }
}

#[tokio::test]
async fn a_small_file_of_a_huge_picture_is_kept_and_not_decoded() {
    let school = on_files(|_| {}).await;
    let _worker = school.worker().await;
    // One bit for a pixel, so that making it costs less than it did to decode it in the colours that it could have.
    let huge =
        ["-f", "rawvideo", "-pix_fmt", "monob", "-video_size", "16000x16000", "-framerate", "1", "-i", "/dev/zero"];
    let film = school.installation.directory.join("huge.mkv");
    let ffmpeg = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error"])
        .args(huge)
        .args(["-frames:v", "1", "-pix_fmt", "monob", "-c:v", "png"])
        .arg(&film)
        .status();
    assert!(ffmpeg.unwrap().success());
    school.has("huge", &film);
    school.proceeded("huge").await;
    let row = school.becomes("huge", "ready").await;
    assert_eq!((row.width, row.height, row.thumbnail_key.as_ref()), (None, None, None));
    assert!(error(&row).contains("exceeds specified max pixel count"), "{row:?}");
    assert_eq!(school.server.count(Endpoint::Download), 1);
}
