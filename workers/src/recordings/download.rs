//! From the server to a file on disk, hashed on the way, never more than a few megabytes of it in memory.
//!
//! The bytes go from the network to a thread that writes them, from there to one that hashes, and every now and then a third
//! one makes the disk have what it has been given: all overlapped, so that a recording takes about as long as its slowest
//! part and the sync at its end has little left to do.
//!
//! The server is another machine's: it is believed neither the length nor the end of what it gives, and [`Demands`] says what it
//! cannot have of this one.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use rollcall_shared::config;
use rollcall_shared::plugnmeet::api::{Client, Download, Error, Rest};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;

use super::asking;
use super::pace::{MinRate, Pace, TooSlow};
use super::room::Room;
use crate::cause::Told;
use crate::worker::Failure;

/// How many pieces wait between two threads: the network hands over up to about 400 KB at a time.
const QUEUE: usize = 8;
/// After how many bytes the disk is asked to keep up.
const SYNC_EVERY: u64 = 16 * 1024 * 1024;
/// After how many bytes the disk is asked what it has left.
const LOOK_EVERY: u64 = 4 * 1024 * 1024;
/// The waits before a broken connection is taken up again; they begin anew with every byte that has come.
const PATIENCE: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5), Duration::from_secs(15)];

/// What is asked of a server, and what it cannot have.
#[derive(Debug)]
pub(super) struct Demands {
    /// The longest file.
    pub(super) max_bytes: u64,
    /// The slowest.
    pub(super) min_rate: MinRate,
    /// The waits before a broken connection is taken up again.
    pub(super) patience: Vec<Duration>,
}

impl Demands {
    /// As the settings have it.
    pub(super) fn of(settings: &config::Recordings) -> Self {
        Self { max_bytes: settings.max_bytes, min_rate: MinRate::of(settings), patience: PATIENCE.to_vec() }
    }

    /// Whether a file may be so long, as it says or as it has come.
    fn allow(&self, bytes: u64) -> Result<(), Failure> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        let most = self.max_bytes;
        let what =
            format!("the file is longer than recordings.max_bytes allows: {bytes} bytes and more, and {most} may be");
        Err(Failure::permanent(Told::new("recording-too-long", what)))
    }
}

/// A file that is here as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fetched {
    /// In bytes.
    pub(super) size: u64,
    /// In lower-case hex.
    pub(super) sha256: String,
}

/// Fetches a recording into a new file at `path`, where there is [`Room`] for it.
///
/// A download that breaks is continued where the server can do that; where it cannot, it has failed and the next attempt
/// begins anew.
pub(super) async fn fetch(
    client: &Client,
    record_id: &str,
    path: &Path,
    room: &Room,
    demands: &Demands,
) -> Result<Fetched, Failure> {
    let mut sink = Sink::create(path, room.clone()).map_err(Failure::transient)?;
    let mut pace = Pace::new(demands.min_rate);
    let mut download = request(client, record_id, None).await?;
    let (length, version) = (download.length, download.version.clone());
    demands.allow(length.unwrap_or_default())?;
    room.check(length.unwrap_or_default()).map_err(Failure::transient)?;
    let mut waits = demands.patience.iter();
    loop {
        let before = sink.taken;
        let broken = match sink.fill(&mut download, &mut pace, demands).await? {
            None => break,
            Some(error) => error,
        };
        if sink.taken > before {
            waits = demands.patience.iter();
        }
        let cut = || format!("cut off after {} of {} bytes", sink.taken, length.map_or("?".into(), |n| n.to_string()));
        let (Some(wait), Some(version)) = (waits.next(), &version) else {
            return Err(Failure::transient(anyhow::Error::new(broken).context(cut())));
        };
        tracing::info!(record_id, error = %broken, "{}; asking for the rest", cut());
        let broken_since = Instant::now();
        tokio::time::sleep(*wait).await;
        let rest = Rest { from: sink.taken, of: version.clone() };
        download = request(client, record_id, Some(&rest)).await?;
        if download.start != sink.taken || download.length != length {
            return Err(Failure::transient(anyhow!("{}, and the server does not give the rest alone", cut())));
        }
        pace.count(0, broken_since).map_err(too_slow)?;
    }
    finish(sink, length).await
}

/// The server may be busy, and faster another time.
fn too_slow(error: TooSlow) -> Failure {
    Failure::transient(Told::new("plugnmeet-slow", error))
}

/// A fresh token for every request: one lives for half an hour at most.
async fn request(client: &Client, record_id: &str, rest: Option<&Rest>) -> Result<Download, Failure> {
    let token = asking("asking for a token", || client.download_token(record_id)).await?;
    asking("asking for the file", || client.download(&token, rest)).await
}

async fn finish(sink: Sink, length: Option<u64>) -> Result<Fetched, Failure> {
    let fetched = sink.finish().await?;
    match length {
        // The server may still be moving it there.
        _ if fetched.size == 0 => Err(Failure::transient(anyhow!("the file is empty"))),
        Some(length) if length != fetched.size => {
            Err(Failure::transient(anyhow!("{} bytes came, and Content-Length says {length}", fetched.size)))
        }
        _ => Ok(fetched),
    }
}

/// A file that is being written and hashed by threads of its own. Dropped, it stops where it is.
struct Sink {
    chunks: mpsc::Sender<Bytes>,
    written: JoinHandle<io::Result<Sha256>>,
    /// How many bytes were handed over.
    taken: u64,
}

impl Sink {
    fn create(path: &Path, room: Room) -> anyhow::Result<Self> {
        let file = File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        let (chunks, queue) = mpsc::channel(QUEUE);
        Ok(Self { chunks, written: tokio::task::spawn_blocking(move || write(&file, &room, queue)), taken: 0 })
    }

    /// Takes a download to its end, or to where its connection broke and why.
    async fn fill(
        &mut self,
        download: &mut Download,
        pace: &mut Pace,
        demands: &Demands,
    ) -> Result<Option<Error>, Failure> {
        loop {
            let asked = Instant::now();
            let chunk = match download.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(None),
                Err(error) => return Ok(Some(error)),
            };
            if self.taken == 0 && is_text(&chunk) {
                // Not the recording's fault, nor for ever: the server never says this, but a proxy that cannot reach it,
                // or is being mended, may say it with a 200.
                return Err(Failure::transient(anyhow!("a page or a message came instead of the file")));
            }
            pace.count(chunk.len(), asked).map_err(too_slow)?;
            self.taken += chunk.len() as u64;
            demands.allow(self.taken)?;
            if self.chunks.send(chunk).await.is_err() {
                return Err(self.failure().await);
            }
        }
    }

    async fn finish(self) -> Result<Fetched, Failure> {
        let Self { chunks, written, taken } = self;
        // The threads end when nobody can send any more.
        drop(chunks);
        let hash = joined(written.await)?;
        Ok(Fetched { size: taken, sha256: hex::encode(hash.finalize()) })
    }

    /// Why the threads have stopped taking.
    async fn failure(&mut self) -> Failure {
        joined((&mut self.written).await)
            .err()
            .unwrap_or_else(|| Failure::transient(anyhow!("the writer has ended early")))
    }
}

fn joined(written: Result<io::Result<Sha256>, JoinError>) -> Result<Sha256, Failure> {
    written
        .map_err(anyhow::Error::new)
        .and_then(|done| done.context("cannot write to the disk"))
        .map_err(Failure::transient)
}

/// Whether these are the first bytes of HTML, XML or JSON: no film begins like that.
fn is_text(first: &[u8]) -> bool {
    matches!(first.trim_ascii_start().first(), Some(b'<' | b'{'))
}

fn write(file: &File, room: &Room, mut chunks: mpsc::Receiver<Bytes>) -> io::Result<Sha256> {
    thread::scope(|scope| {
        let (to_hash, hashed) = sync_channel(QUEUE);
        let (to_sync, marks) = sync_channel(1);
        let hasher = scope.spawn(move || hash(&hashed));
        let syncer = scope.spawn(move || sync(file, &marks));
        let (mut unsynced, mut unlooked) = (0, LOOK_EVERY);
        while let Some(chunk) = chunks.blocking_recv() {
            if unlooked >= LOOK_EVERY {
                room.check(LOOK_EVERY)?;
                unlooked = 0;
            }
            (&*file).write_all(&chunk)?;
            unsynced += chunk.len() as u64;
            unlooked += chunk.len() as u64;
            // Where the disk is behind already, one mark is waiting and covers this too.
            if unsynced >= SYNC_EVERY && to_sync.try_send(()).is_ok() {
                unsynced = 0;
            }
            // Gone only if it has panicked, which joining it will tell.
            let _ = to_hash.send(chunk);
        }
        drop((to_hash, to_sync));
        syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok(hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn hash(chunks: &Receiver<Bytes>) -> Sha256 {
    chunks.iter().fold(Sha256::new(), |hash, chunk| hash.chain_update(chunk))
}

fn sync(file: &File, marks: &Receiver<()>) -> io::Result<()> {
    marks.iter().try_for_each(|()| file.sync_data())
}

#[cfg(test)]
mod tests;
