//! A recording of a gibibyte: how much memory it takes, and how its speed compares to `curl -o`. By `make soak`.

#![allow(clippy::print_stderr)]

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rollcall_ops::standin::{Recording, StandIn};
use rollcall_shared::store::entity::live_session_recording as recording;
use rollcall_tests::eventually;
use rollcall_tests::installation::{Installation, memory_kib};
use rollcall_tests::webhooks::Sender;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use serde_json::json;
use tokio::process::Command;

const GIBIBYTE: u64 = 1 << 30;
const ROUNDS: usize = 7;

/// A short video that is a gibibyte long: what an MP4 has in a `free` box, players skip.
async fn long_file(directory: &Path) -> PathBuf {
    let file = directory.join("long.mp4");
    let made = Command::new("ffmpeg")
        .args(["-nostdin", "-v", "error", "-y", "-f", "lavfi", "-i", "testsrc2=size=640x360:rate=10:duration=2"])
        .args(["-pix_fmt", "yuv420p"])
        .arg(&file)
        .status();
    assert!(made.await.unwrap().success());
    let mut open = std::fs::File::options().write(true).open(&file).unwrap();
    let video = open.seek(SeekFrom::End(0)).unwrap();
    let free = u32::try_from(GIBIBYTE - video).unwrap();
    open.write_all(&free.to_be_bytes()).unwrap();
    open.write_all(b"free").unwrap();
    open.set_len(GIBIBYTE).unwrap();
    file
}

async fn curl(url: &str, to: &Path) -> Duration {
    let began = Instant::now();
    let fetched = Command::new("curl").args(["--silent", "--show-error", "--fail", url, "-o"]).arg(to).status();
    assert!(fetched.await.unwrap().success());
    let took = began.elapsed();
    std::fs::remove_file(to).unwrap();
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "moves gigabytes: make soak"]
async fn a_gibibyte_is_archived_in_little_memory_and_not_much_slower_than_curl() {
    let mut installation = Installation::new().await;
    let server = StandIn::start("key", &"secret".into()).await.unwrap();
    installation.server("main", "key", "secret", server.url().as_str());
    let ingress = installation.ingress().await;
    let worker = installation.worker("recordings").await;
    let sender = Sender::new(&installation, "main", ingress.address);
    let file = long_file(&installation.directory).await;

    // Only then the machine has the file in memory.
    server.add_recording(Recording::new("warm-up", "room", "sid", &file));
    curl(&server.storage_url("warm-up"), &installation.directory.join("by-curl.mp4")).await;

    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        // The same file by the same server, in turn: the machine's own speed changes from minute to minute.
        let id = format!("long-{round}");
        server.add_recording(Recording::new(&id, "room", "sid", &file));
        let by_curl = curl(&server.storage_url(&id), &installation.directory.join("by-curl.mp4")).await;
        let began = Instant::now();
        sender.post(&proceeded(&id)).await;
        let row = eventually(Duration::from_secs(300), || ready(&installation, &id)).await;
        let by_us = began.elapsed();
        assert_eq!(row.file_size, i64::try_from(GIBIBYTE).ok());
        let ratio = by_curl.as_secs_f64() / by_us.as_secs_f64();
        eprintln!("curl -o {by_curl:.2?}, archived {by_us:.2?}: {ratio:.2} of its speed");
        ratios.push(ratio);
        std::fs::remove_file(installation.media().join(row.file_key.unwrap())).unwrap();
    }
    let (_, peak) = memory_kib(&worker);
    eprintln!("peak resident memory of the worker: {} MiB", peak / 1024);
    worker.stop().await;
    assert!(peak < 64 * 1024, "{peak} KiB");
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[ROUNDS / 2] >= 0.8, "{ratios:?}");
}

fn proceeded(id: &str) -> String {
    json!({"event": "recording_proceeded", "id": id, "created_at": "1790000000",
           "room": {"sid": "sid", "room_id": "room"}, "recording_info": {"record_id": id}})
    .to_string()
}

async fn ready(installation: &Installation, id: &str) -> Result<recording::Model, String> {
    let row = recording::Entity::find().filter(recording::Column::RecordId.eq(id)).one(&installation.db).await.unwrap();
    row.filter(|row| row.status == "ready").ok_or_else(|| format!("{id} is not ready"))
}
