//! The file: opened or made, and not touched if it is not ours to touch.

use std::fs::{self, File as LockFile};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tokio::task::spawn_blocking;

use super::holder::{self, Holder};
use super::writer::StoreError;
use crate::private;
use crate::queue::QueueError;

/// "Roll", in a SQLite file's header: whose file it is.
const APPLICATION_ID: i64 = 0x526f_6c6c;
/// The schema that this program makes and knows.
const VERSION: i64 = 2;
/// What makes the schema of version 1 that of version 2. Programs of version 1 that have the file open can go on, but do not pass
/// on which replay of a dead letter a message is.
const FROM_1: &str = "
ALTER TABLE message ADD COLUMN cause TEXT;
ALTER TABLE message ADD COLUMN dead_letter_id INTEGER;
ALTER TABLE message ADD COLUMN replay INTEGER;
";
/// How long another process may hold the file's write lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// After how many pages what is in the log goes to its place: 16 MB, since each time costs two more syncs.
const CHECKPOINT_PAGES: &str = "4000";
/// How much of the log's file is kept, in bytes, when it was once larger.
const LOG_SIZE: &str = "33554432";
/// The largest file, in bytes, that is read through for damage before it is used: longer takes too long.
const CHECKED_SIZE: u64 = 64 * 1024 * 1024;

const SCHEMA: &str = "
CREATE TABLE message (
    -- Never given out twice: a lower one that comes later would not be seen by who has read past it.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    -- Times are milliseconds since 1970. When it goes back to its worker's queue; only where it waits for that.
    due_at INTEGER,
    -- How often whoever had it, alone, died with it.
    deaths INTEGER NOT NULL DEFAULT 0,
    id TEXT NOT NULL,
    event_id TEXT,
    event TEXT NOT NULL,
    source TEXT NOT NULL,
    room_id TEXT,
    received_at INTEGER NOT NULL,
    traceparent TEXT,
    attempt INTEGER NOT NULL DEFAULT 0,
    first_failed_at INTEGER,
    last_error TEXT,
    -- Of what is dead.
    dead_kind TEXT,
    cause TEXT,
    last_failed_at INTEGER,
    host TEXT,
    -- Of what had died and was sent back to its worker.
    dead_letter_id INTEGER,
    replay INTEGER,
    body BLOB NOT NULL
);
CREATE INDEX message_by_queue ON message (queue);
CREATE INDEX message_by_due_at ON message (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE lease (
    seq INTEGER PRIMARY KEY,
    holder TEXT NOT NULL
);
";

/// A queue file that is ours and whole.
#[derive(Debug, Clone)]
pub(in crate::queue) struct File {
    path: PathBuf,
}

impl File {
    /// Opens the file, or makes it where there is none.
    ///
    /// # Errors
    /// It cannot be used. Nothing in it was changed.
    pub(in crate::queue) async fn open(path: &Path) -> Result<Self, QueueError> {
        let file = Self { path: path.to_owned() };
        // One process at a time: switching a fresh file to its write-ahead log does not wait for others.
        let holders = file.holders();
        let locked = spawn_blocking(move || lock_for_opening(&holders)).await.unwrap_or_else(|error| Err(error.into()));
        let locked = locked.map_err(|error| file.unwritable(&error))?;
        file.check_permission().map_err(|error| file.unwritable(&error))?;
        // What SQLite lays beside it is for the same to read.
        private::make_file(path).map_err(|error| file.unwritable(&error))?;
        file.prepare().await?;
        file.sync_folder().map_err(|error| file.unwritable(&error))?;
        holder::forget_the_gone(&file.holders());
        drop(locked);
        Ok(file)
    }

    /// The file, only to look at; `None` where there is none. Nothing is made or changed, so that the programs of an older
    /// version that use it can go on.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub(in crate::queue) async fn find(path: &Path) -> Result<Option<Self>, QueueError> {
        let file = Self { path: path.to_owned() };
        if !path.try_exists().map_err(|error| file.unwritable(&error))? {
            return Ok(None);
        }
        file.check_permission().map_err(|error| file.unwritable(&error))?;
        let mut connection = file.reader().await?;
        match file.marks(&mut connection).await? {
            Marks { tables: 0, .. } => return Ok(None),
            Marks { application_id: APPLICATION_ID, version: 1..=VERSION, .. } => file.check(&mut connection).await?,
            marks => return Err(file.not_ours(&marks)),
        }
        Ok(Some(file))
    }

    pub(in crate::queue) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the locks are that say which processes are alive.
    pub(in crate::queue) fn holders(&self) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push("-holders");
        path.into()
    }

    /// A new holder of what is in the file: a worker.
    pub(in crate::queue) fn new_worker(&self) -> Result<Holder, QueueError> {
        Holder::worker(&self.holders()).map_err(|error| self.unwritable(&error))
    }

    /// A new holder of what is in the file: one that only takes messages out.
    pub(in crate::queue) fn new_drain(&self) -> Result<Holder, QueueError> {
        Holder::drain(&self.holders()).map_err(|error| self.unwritable(&error))
    }

    /// A connection to look without waiting for the writer.
    pub(in crate::queue) async fn reader(&self) -> Result<SqliteConnection, QueueError> {
        self.options().connect().await.map_err(|error| self.unusable(&error))
    }

    /// A connection to write. It does not wait for others: the writer does.
    pub(in crate::queue) async fn writer(&self) -> sqlx::Result<SqliteConnection> {
        let mut connection = self
            .options()
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("journal_size_limit", LOG_SIZE)
            .connect()
            .await?;
        sqlx::query("PRAGMA busy_timeout = 0").execute(&mut connection).await?;
        Ok(connection)
    }

    fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(BUSY_TIMEOUT)
            .row_buffer_size(512)
            .disable_statement_logging()
    }

    /// SQLite opens for reading what it may only read. Asked and not tried: closing the file, however it was opened, would end
    /// the locks that this process has on it.
    fn check_permission(&self) -> io::Result<()> {
        match access(&self.path, Access::WRITE_OK) {
            Err(Errno::NOENT) => Ok(()),
            asked => Ok(asked?),
        }
    }

    async fn prepare(&self) -> Result<(), QueueError> {
        let options = self.options().create_if_missing(true);
        let mut connection = options.connect().await.map_err(|error| self.unusable(&error))?;
        self.prepare_on(&mut connection).await?;
        connection.close().await.map_err(|error| self.unusable(&error))
    }

    async fn prepare_on(&self, connection: &mut SqliteConnection) -> Result<(), QueueError> {
        let failed = |error| self.unusable(&error);
        match self.marks(connection).await? {
            Marks { application_id: 0, version: 0, tables: 0 } => self.create(connection).await.map_err(failed),
            Marks { application_id: APPLICATION_ID, version: VERSION, .. } => self.check(connection).await,
            Marks { application_id: APPLICATION_ID, version: 1, .. } => {
                self.check(connection).await?;
                change_schema(connection, FROM_1).await.map_err(failed)
            }
            marks => Err(self.not_ours(&marks)),
        }
    }

    async fn marks(&self, connection: &mut SqliteConnection) -> Result<Marks, QueueError> {
        let failed = |error| self.unusable(&error);
        Ok(Marks {
            application_id: number(connection, "PRAGMA application_id").await.map_err(failed)?,
            version: number(connection, "PRAGMA user_version").await.map_err(failed)?,
            tables: number(connection, "SELECT count(*) FROM sqlite_master").await.map_err(failed)?,
        })
    }

    fn not_ours(&self, marks: &Marks) -> QueueError {
        match marks {
            Marks { application_id: APPLICATION_ID, version: newer, .. } => self.error(
                format!("it is of a newer Rollcall (version {newer}, and this one knows {VERSION})"),
                "run that one, or let it work the queue off first",
            ),
            _ => self.error("it is a SQLite file of another program", "choose another file"),
        }
    }

    async fn create(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        // It is too late for the first as soon as there is a table.
        sqlx::raw_sql("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL").execute(&mut *connection).await?;
        change_schema(connection, SCHEMA).await
    }

    /// That there is a file at all must outlive a power cut too.
    fn sync_folder(&self) -> io::Result<()> {
        LockFile::open(private::folder_of(&self.path))?.sync_all()
    }

    async fn check(&self, connection: &mut SqliteConnection) -> Result<(), QueueError> {
        if fs::metadata(&self.path).is_ok_and(|file| file.len() > CHECKED_SIZE) {
            return Ok(());
        }
        let found = sqlx::query("PRAGMA quick_check(1)").fetch_one(connection).await;
        let found: String = found.and_then(|row| row.try_get(0)).map_err(|error| self.unusable(&error))?;
        // Under a headline.
        let found = found.lines().last().unwrap_or_default();
        if found == "ok" { Ok(()) } else { Err(self.damaged(found)) }
    }

    /// What SQLite says about a file that cannot be used, and what to do.
    pub(in crate::queue) fn unusable(&self, error: &sqlx::Error) -> QueueError {
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
        match primary_code(&code) {
            // SQLITE_PERM, READONLY, IOERR, CANTOPEN.
            Some(3 | 8 | 10 | 14) => self.unwritable(error),
            Some(11) => self.damaged(&error.to_string()),
            Some(13) => self.error("the disk is full", "make room on it"),
            Some(26) => self.error("it is no SQLite file, or its first page is damaged", KEEP_ASIDE),
            _ => self.error(error.to_string(), "look what else uses it"),
        }
    }

    /// A statement that failed on it.
    pub(in crate::queue) fn failed(&self, error: &sqlx::Error) -> StoreError {
        StoreError::Failed { path: self.path.clone(), reason: error.to_string() }
    }

    pub(in crate::queue) fn unwritable(&self, error: &dyn std::fmt::Display) -> QueueError {
        self.error(format!("it cannot be written to ({error})"), "let this user write there, or choose another file")
    }

    fn damaged(&self, found: &str) -> QueueError {
        self.error(format!("it is damaged ({found})"), KEEP_ASIDE)
    }

    fn error(&self, reason: impl Into<String>, way_out: &'static str) -> QueueError {
        QueueError::File { path: self.path.display().to_string(), reason: reason.into(), way_out }
    }
}

/// What a SQLite file says that it is.
#[derive(Debug)]
struct Marks {
    application_id: i64,
    version: i64,
    tables: i64,
}

/// All or nothing, marked with what it is then.
async fn change_schema(connection: &mut SqliteConnection, change: &'static str) -> sqlx::Result<()> {
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(change).execute(&mut *tx).await?;
    let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(marks)).execute(&mut *tx).await?;
    tx.commit().await
}

fn lock_for_opening(holders: &Path) -> io::Result<LockFile> {
    private::make_folder(holders)?;
    let lock = private::new_file().create(true).truncate(false).open(holders.join("opening"))?;
    lock.lock()?;
    Ok(lock)
}

const KEEP_ASIDE: &str = "move it aside with its -wal and start again; \
    `sqlite3 FILE .recover` gets back what can be had of the events in it";

/// SQLite's result codes carry more in their upper bits.
pub(in crate::queue) fn primary_code(code: &str) -> Option<u32> {
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

async fn number(connection: &mut SqliteConnection, statement: &'static str) -> sqlx::Result<i64> {
    sqlx::query_scalar(statement).fetch_one(connection).await
}
