//! Everything that a process writes to the file, by one task: what has come together goes into one transaction and so
//! shares one sync of the disk, and a process never waits for itself.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use metrics::histogram;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, error, info, warn};

use super::file::{self, File};
use super::messages;
use crate::queue::Message;

/// The most writes in one transaction.
const MOST: usize = 512;
/// How many writes wait for the next.
const WAITING: usize = 1024;
/// How long other processes get to have the file before this one has it again, and how often, at most, each asks for it:
/// SQLite's own waiting gets longer and longer, and so is not fair to who has waited for long.
const BREATH: Duration = Duration::from_millis(1);
const ASK_AGAIN: Range<Duration> = Duration::from_micros(300)..Duration::from_micros(1500);
/// What stays free of the disk for SQLite's log, in bytes.
const LEFT_TO_THE_LOG: u64 = 32 * 1024 * 1024;
/// How long another process may keep the file to itself before this one says that it cannot write: a webhook waits no longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// After how long such a process is told of in the log, and how often anything that goes on is told.
const LONG: Duration = Duration::from_secs(10);
/// How often to see whether anything could be written, while there is nothing to write.
const LOOK_AROUND: Duration = Duration::from_secs(3);

/// How long nothing is to be written before the file gives back what a backlog has left free in it; how many bytes it keeps for
/// the next one; and how many pages it gives back at once (a megabyte: whoever wants to write waits for that).
const IDLE: Duration = Duration::from_secs(1);
const KEPT_FREE: u64 = 16 * 1024 * 1024;
const GIVEN_BACK_AT_ONCE: u32 = 256;
/// How often to try again while nothing can be written.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How much the file may hold.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Limits {
    /// The most bytes that are in use in the file.
    pub(in crate::queue) max_bytes: Option<u64>,
    /// How much of the disk stays free.
    pub(in crate::queue) min_free_bytes: u64,
}

/// Why nothing was written.
#[derive(Debug, Clone, thiserror::Error)]
pub(in crate::queue) enum StoreError {
    #[error("{path} has as much in it as it may: {limit}", path = path.display())]
    Full { path: PathBuf, limit: &'static str },
    #[error("{path} cannot be written: {reason}", path = path.display())]
    Failed { path: PathBuf, reason: String },
    #[error("the program is stopping")]
    Stopping,
}

/// A file that is being written to.
#[derive(Debug)]
pub(in crate::queue) struct Store {
    pub(in crate::queue) file: File,
    writes: mpsc::Sender<Write>,
    changes: watch::Sender<()>,
    obstacles: Arc<Obstacles>,
}

/// What is in the way of writing.
#[derive(Debug, Default)]
struct Obstacles {
    /// The last attempt to write failed, or there was no room for a message.
    refusing: AtomicBool,
    /// Another process keeps the file to itself.
    blocked: AtomicBool,
}

/// One thing to write.
enum Write {
    Insert(Box<Insert>),
    Other(Work),
}

/// A message for the end of a queue.
struct Insert {
    queue: &'static str,
    message: Message,
    done: Done,
}

/// Done in a transaction that others share.
type Work = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<Done>> + Send>;

/// Told once it is known whether the transaction was committed.
type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

impl Store {
    /// Starts the task that writes; it ends when the store is dropped.
    pub(in crate::queue) fn start(file: File, limits: Limits) -> Self {
        let (writes, waiting) = mpsc::channel(WAITING);
        let changes = watch::Sender::new(());
        let obstacles = Arc::<Obstacles>::default();
        let writer = Writer { file: file.clone(), limits, changes: changes.clone(), obstacles: obstacles.clone() };
        tokio::spawn(writer.run(waiting));
        Self { file, writes, changes, obstacles }
    }

    /// Puts a message at the end of a queue. When this returns `Ok`, it is on disk.
    pub(in crate::queue) async fn insert(&self, queue: &'static str, message: Message) -> Result<(), StoreError> {
        let (done, stored) = oneshot::channel();
        let done: Done = Box::new(|result| drop(done.send(result)));
        let insert = Write::Insert(Box::new(Insert { queue, message, done }));
        self.writes.send(insert).await.map_err(|_| StoreError::Stopping)?;
        stored.await.unwrap_or(Err(StoreError::Stopping))
    }

    /// Does `work` in a transaction, with what others write at the time. When this returns `Ok`, it is on disk.
    pub(in crate::queue) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, sqlx::Result<T>> + Send + 'static,
    {
        let (done, written) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let working = work(connection);
            Box::pin(async move {
                let value = working.await?;
                Ok(Box::new(move |result: Result<(), StoreError>| drop(done.send(result.map(|()| value)))) as Done)
            })
        });
        self.writes.send(Write::Other(work)).await.map_err(|_| StoreError::Stopping)?;
        // Where the work itself failed, nobody was told: the writer has logged why.
        let reason = || "the log says why".to_owned();
        let lost = |_| Err(StoreError::Failed { path: self.file.path().to_owned(), reason: reason() });
        written.await.unwrap_or_else(lost)
    }

    /// Told whenever this process has added something to a queue.
    pub(in crate::queue) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Tells whoever waits for changes to look.
    pub(in crate::queue) fn changed(&self) {
        self.changes.send_replace(());
    }

    pub(in crate::queue) fn obstacle(&self) -> Option<&'static str> {
        let Obstacles { refusing, blocked } = &*self.obstacles;
        if blocked.load(Ordering::Relaxed) {
            return Some("another process keeps the queue file to itself");
        }
        let refuses = refusing.load(Ordering::Relaxed) || self.writes.is_closed();
        refuses.then_some("the queue file cannot be written to, or is full")
    }
}

struct Writer {
    file: File,
    limits: Limits,
    changes: watch::Sender<()>,
    obstacles: Arc<Obstacles>,
}

/// What goes into one transaction.
#[derive(Default)]
struct Batch {
    messages: Vec<(&'static str, Message)>,
    /// Of the messages.
    stored: Vec<Done>,
    others: Vec<Work>,
    /// Of those others that have done their work.
    done: Vec<Done>,
}

/// What the file has given back to the disk.
enum Given {
    /// A part of what it can.
    Some,
    /// Nothing: another process uses the file.
    NothingBesideOthers,
    /// All that it can.
    All,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Write>) {
        let mut connection = None;
        let mut trouble = Trouble::default();
        let mut writes = Vec::with_capacity(MOST);
        while self.some(&mut waiting, &mut writes, &mut connection, &mut trouble).await {
            let batch = Batch::of(writes.drain(..));
            let adds = !batch.messages.is_empty();
            match self.write_apart(&mut connection, batch).await {
                Ok(()) => trouble.is_over(),
                Err(error) => {
                    self.refuse(true);
                    trouble.tell(&error);
                }
            }
            // Not for the rest: who takes what is there would be told of it, and look again, for ever.
            if adds {
                self.changes.send_replace(());
            }
            if !waiting.is_empty() {
                sleep(BREATH).await;
            }
        }
    }

    /// Writes a batch; where that fails, the messages alone, since what failed may be something else that was to be done.
    async fn write_apart(&self, connection: &mut Option<SqliteConnection>, mut batch: Batch) -> Result<(), StoreError> {
        let had_others = !batch.others.is_empty();
        let mut result = self.write(connection, &mut batch).await;
        if let Err(error) = &result {
            *connection = None;
            tell(&mut batch.done, &result);
            if had_others && !batch.messages.is_empty() {
                warn!(%error, "writing messages alone, after something else could not be done with them");
                let alone = self.write(connection, &mut batch).await;
                tell(&mut batch.stored, &alone);
                if alone.is_err() {
                    *connection = None;
                }
                result = result.and(alone);
            }
        }
        tell(&mut batch.stored, &result);
        tell(&mut batch.done, &result);
        result
    }

    /// Waits for something to write; `false` when nobody can want anything any more.
    ///
    /// Meanwhile it sees whether anything could be written: one who is told not to come as long as nothing can will not come to
    /// find out. And it gives back room, as long as there is some to give.
    async fn some(
        &self,
        waiting: &mut mpsc::Receiver<Write>,
        writes: &mut Vec<Write>,
        connection: &mut Option<SqliteConnection>,
        trouble: &mut Trouble,
    ) -> bool {
        let (mut may_shrink, mut pause, mut seen) = (connection.is_some(), IDLE, None);
        loop {
            let is_refusing = self.obstacles.refusing.load(Ordering::Relaxed);
            if let Ok(count) =
                timeout(if is_refusing { TRY_AGAIN } else { pause }, waiting.recv_many(writes, MOST)).await
            {
                return count > 0;
            }
            if is_refusing || !may_shrink {
                let tried = self.try_out(connection, is_refusing).await;
                self.refuse(tried.is_err());
                match tried {
                    Ok(()) => trouble.is_over(),
                    Err(error) => {
                        trouble.tell(&error);
                        *connection = None;
                    }
                }
                pause = LOOK_AROUND;
                continue;
            }
            (may_shrink, pause) = match self.give_back(connection, &mut seen).await {
                Ok(Given::Some) => (true, BREATH),
                Ok(Given::NothingBesideOthers) => (true, IDLE),
                Ok(Given::All) => (false, LOOK_AROUND),
                Err(error) => {
                    debug!(%error, "the queue file could not be made smaller");
                    (false, LOOK_AROUND)
                }
            };
        }
    }

    /// Whether a message could be written: there is room, and the file is ours to write to. With `really`, something is written.
    async fn try_out(&self, connection: &mut Option<SqliteConnection>, really: bool) -> Result<(), StoreError> {
        let connection = self.connected(connection).await?;
        self.room(connection).await?;
        let failed = |error: sqlx::Error| self.file.failed(&error);
        self.begin(connection).await.map_err(failed)?;
        if !really {
            return sqlx::query("ROLLBACK").execute(connection).await.map(|_| ()).map_err(failed);
        }
        messages::leave_no_trace(connection).await.map_err(failed)?;
        sqlx::query("COMMIT").execute(connection).await.map(|_| ()).map_err(failed)
    }

    fn refuse(&self, is_refusing: bool) {
        self.obstacles.refusing.store(is_refusing, Ordering::Relaxed);
    }

    /// Gives some of what is free in the file back to the disk, unless another process has written since the file was `seen` last: it
    /// would wait for this, and take what is given back. A file of a version that made them without that keeps it all.
    async fn give_back(
        &self,
        connection: &mut Option<SqliteConnection>,
        seen: &mut Option<i64>,
    ) -> Result<Given, StoreError> {
        let connection = self.connected(connection).await?;
        let failed = |error: sqlx::Error| self.file.failed(&error);
        let free = messages::space(connection).await.map_err(failed)?.free;
        if free <= KEPT_FREE {
            return Ok(Given::All);
        }
        let version = Some(messages::data_version(connection).await.map_err(failed)?);
        if std::mem::replace(seen, version) != version {
            return Ok(Given::NothingBesideOthers);
        }
        messages::shrink(connection, GIVEN_BACK_AT_ONCE).await.map_err(failed)?;
        let left = messages::space(connection).await.map_err(failed)?.free;
        if left <= KEPT_FREE {
            messages::checkpoint(connection).await.map_err(failed)?;
        }
        Ok(if left < free { Given::Some } else { Given::All })
    }

    async fn connected<'c>(
        &self,
        connection: &'c mut Option<SqliteConnection>,
    ) -> Result<&'c mut SqliteConnection, StoreError> {
        match connection {
            Some(connection) => Ok(connection),
            None => {
                let connected = self.or_blocked(self.file.writer()).await.map_err(|error| self.file.failed(&error))?;
                Ok(connection.insert(connected))
            }
        }
    }

    async fn write(&self, connection: &mut Option<SqliteConnection>, batch: &mut Batch) -> Result<(), StoreError> {
        let connection = self.connected(connection).await?;
        let is_asked_for = !batch.messages.is_empty() || self.obstacles.refusing.load(Ordering::Relaxed);
        let room = if is_asked_for { self.room(connection).await } else { Ok(()) };
        if let Err(full) = &room {
            self.refuse(true);
            batch.refuse_messages(full);
        }
        self.commit(connection, batch).await.map_err(|error| self.file.failed(&error))?;
        // Only now: that there is room does not say that it can be written to.
        self.refuse(room.is_err());
        Ok(())
    }

    /// On an error the transaction ends with its connection.
    async fn commit(&self, connection: &mut SqliteConnection, batch: &mut Batch) -> sqlx::Result<()> {
        self.begin(connection).await?;
        messages::insert(connection, &batch.messages).await?;
        if !batch.messages.is_empty() {
            histogram!("rollcall_queue_file_batch_rows").record(batch.messages.len() as f64);
        }
        for work in batch.others.drain(..) {
            batch.done.push(work(connection).await?);
        }
        sqlx::query("COMMIT").execute(connection).await.map(|_| ())
    }

    /// Takes the write lock, however long another process has it.
    async fn begin(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        let mut since = Instant::now();
        let begun = async {
            loop {
                match sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await {
                    Err(error) if is_busy(&error) => sleep(rand::random_range(ASK_AGAIN)).await,
                    begun => return begun.map(|_| ()),
                }
                if since.elapsed() > LONG {
                    warn!(path = %self.file.path().display(), "another process keeps the queue file to itself");
                    since = Instant::now();
                }
            }
        };
        self.or_blocked(begun).await
    }

    /// Waits for what another process may be in the way of, and says so once that takes long.
    async fn or_blocked<T>(&self, waited_for: impl Future<Output = T>) -> T {
        let mut waited_for = pin!(waited_for);
        if let Ok(done) = timeout(PATIENCE, &mut waited_for).await {
            return done;
        }
        self.obstacles.blocked.store(true, Ordering::Relaxed);
        let done = waited_for.await;
        self.obstacles.blocked.store(false, Ordering::Relaxed);
        done
    }

    /// Whether there is room for more messages.
    async fn room(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let full = |limit| StoreError::Full { path: self.file.path().to_owned(), limit };
        let failed = |error: sqlx::Error| self.file.failed(&error);
        let Limits { max_bytes, min_free_bytes } = self.limits;
        let free = free_bytes(self.file.path());
        // What is free in the file is free too, but not for the log.
        let enough = free >= min_free_bytes
            || (free >= min_free_bytes.min(LEFT_TO_THE_LOG)
                && free + messages::space(connection).await.map_err(failed)?.free >= min_free_bytes);
        if !enough {
            return Err(full("the disk is nearly full"));
        }
        match max_bytes {
            Some(max) if messages::space(connection).await.map_err(failed)?.used >= max => Err(full("max_bytes")),
            _ => Ok(()),
        }
    }
}

impl Batch {
    fn of(writes: impl Iterator<Item = Write>) -> Self {
        let mut batch = Self::default();
        for write in writes {
            match write {
                Write::Insert(insert) => {
                    let Insert { queue, message, done } = *insert;
                    batch.messages.push((queue, message));
                    batch.stored.push(done);
                }
                Write::Other(work) => batch.others.push(work),
            }
        }
        batch
    }

    fn refuse_messages(&mut self, error: &StoreError) {
        self.messages.clear();
        tell(&mut self.stored, &Err(error.clone()));
    }
}

fn tell(waiting: &mut Vec<Done>, result: &Result<(), StoreError>) {
    for done in waiting.drain(..) {
        done(result.clone());
    }
}

/// That nothing can be written, told once, and then now and again: the log may be on the same disk.
#[derive(Default)]
struct Trouble {
    told: Option<Instant>,
    untold: usize,
}

impl Trouble {
    fn tell(&mut self, error: &StoreError) {
        self.untold += 1;
        if self.told.is_none_or(|told| told.elapsed() >= LONG) {
            error!(%error, times = self.untold, "nothing could be written to the queue");
            *self = Self { told: Some(Instant::now()), untold: 0 };
        }
    }

    fn is_over(&mut self) {
        if self.told.take().is_some() {
            info!("the queue can be written to again");
            self.untold = 0;
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| file::primary_code(&code) == Some(SQLITE_BUSY))
}

const SQLITE_BUSY: u32 = 5;

/// How much of the file's disk is free; everything, where that cannot be told.
pub(super) fn free_bytes(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn what_a_backlog_has_taken_of_the_disk_is_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("queue.db");
        let file = File::open(&path).await.unwrap();
        let store = Store::start(file, Limits { max_bytes: None, min_free_bytes: 0 });
        let message = Message::new("main", "participant_joined", Bytes::from(vec![b'x'; 256 * 1024]));
        let backlog = (0..160).map(|_| store.insert("attendance", message.clone()));
        for stored in futures_util::future::join_all(backlog).await {
            stored.unwrap();
        }
        store.write(|tx| Box::pin(messages::delete_all(tx))).await.unwrap();
        let used = || std::fs::metadata(&path).unwrap().len();
        let deadline = Instant::now() + Duration::from_secs(30);
        while used() > KEPT_FREE + 1024 * 1024 {
            assert!(Instant::now() < deadline, "it has {} MB", used() / 1024 / 1024);
            sleep(Duration::from_millis(20)).await;
        }
        store.insert("attendance", message).await.unwrap();
    }
}
