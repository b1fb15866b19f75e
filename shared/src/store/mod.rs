//! The database that integrators read: connecting to it, its tables ([`entity`]), its time, and what its errors mean.

mod clock;
pub mod entity;
mod transaction;

use std::path::Path;
use std::time::Duration;

use rustix::fs::{Access, access};
use rustix::io::Errno;
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, RuntimeErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait as _,
};
use sqlx::sqlite::{SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection as _, Error as SqlxError, PgConnection};
use tokio::time::timeout;

pub use self::clock::Clock;
pub use self::transaction::{Failed, TRANSACTION_LIMIT, in_time, transaction};
use crate::config::SecretUrl;

/// How long to wait for a connection, from the pool or to the server, before the database counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a process waits for another that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// What a connection may cost the others: a worker whose machine died in a transaction holds its locks no longer than this.
const POSTGRES_LIMITS: [(&str, &str); 3] =
    [("statement_timeout", "30s"), ("lock_timeout", "20s"), ("idle_in_transaction_session_timeout", "60s")];

/// Connects to the database at `url`, with at most `connections` at once.
///
/// # Errors
/// It cannot be reached, or refuses the user. The error has no password in it.
pub async fn connect(url: &SecretUrl, connections: u32) -> Result<DatabaseConnection, DbErr> {
    let path = url.sqlite_path();
    match &path {
        Some(path) => may_write(path)?,
        None => try_once(url).await?,
    }
    let mut options = ConnectOptions::new(url.expose());
    options
        // Only one can write to a file at a time: in one connection they wait in turn, which SQLite itself does not see to.
        .max_connections(if path.is_some() { 1 } else { connections })
        .connect_timeout(CONNECT_TIMEOUT)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .map_sqlx_postgres_opts(|options| options.options(POSTGRES_LIMITS))
        .map_sqlx_sqlite_opts(move |options| {
            // As everywhere else the path is taken as it stands; sqlx would decode it.
            let options = match &path {
                Some(path) => options.filename(path),
                None => options,
            };
            options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full).busy_timeout(BUSY_TIMEOUT)
        })
        .map_sqlx_sqlite_pool_opts(|options| options.after_release(|connection, _| Box::pin(has_ended(connection))))
        .map_sqlx_postgres_pool_opts(|options| options.after_release(|connection, _| Box::pin(answers(connection))))
        .sqlx_logging(false);
    Database::connect(options).await
}

/// SQLite opens for reading what it may only read, and says so at the first write.
fn may_write(path: &Path) -> Result<(), DbErr> {
    match access(path, Access::WRITE_OK) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(DbErr::Conn(RuntimeErr::Internal(format!("the file cannot be written to ({error})")))),
    }
}

/// A pool only says that it waited in vain, not for what.
async fn try_once(url: &SecretUrl) -> Result<(), DbErr> {
    let failed = |error| DbErr::Conn(RuntimeErr::SqlxError(std::sync::Arc::new(error)));
    let connected = timeout(CONNECT_TIMEOUT, PgConnection::connect(url.expose())).await;
    let connection = connected.unwrap_or(Err(SqlxError::PoolTimedOut)).map_err(failed)?;
    connection.close().await.map_err(failed)
}

/// Before a connection goes back into the pool: whether it may. A full disk makes SQLite end a transaction by itself, and sqlx
/// goes on counting it: what is begun on that connection would be a savepoint of nothing, and its commit would commit nothing.
async fn has_ended(connection: &mut SqliteConnection) -> Result<bool, SqlxError> {
    // After the rollback that waits in front of it.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// What a transaction needs of PostgreSQL, whatever the server, the database or the user has as a default. A statement has to
/// see what was committed while an earlier one waited for a lock; and what is committed is on disk, since its event is
/// acknowledged then. Who asks for more than the disk, such as a standby's, gets it.
///
/// Said in each transaction, for a connection may be a pooler's, and not ours alone; in one message, for each costs a round trip.
const POSTGRES_TRANSACTION: &str = "SET TRANSACTION ISOLATION LEVEL READ COMMITTED; \
    SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'";

/// Begins a transaction that will write: of two on one SQLite file, the second waits here, for one that has read already and
/// then wants to write cannot wait any more. On PostgreSQL it is `READ COMMITTED`, and its commit waits for the disk.
///
/// # Errors
/// As of any statement.
pub async fn begin(db: &DatabaseConnection) -> Result<DatabaseTransaction, DbErr> {
    let options =
        TransactionOptions { sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate), ..Default::default() };
    let transaction = db.begin_with_options(options).await?;
    if db.get_database_backend() == DbBackend::Postgres {
        transaction.execute_unprepared(POSTGRES_TRANSACTION).await?;
    }
    Ok(transaction)
}

/// Before a connection goes back into the pool. The pool itself asks too, and for ever: one that has gone silent would keep
/// its place, until there is none left for another.
async fn answers(connection: &mut PgConnection) -> Result<bool, SqlxError> {
    timeout(CONNECT_TIMEOUT, connection.ping()).await.unwrap_or(Err(SqlxError::PoolTimedOut)).map(|()| true)
}

/// Whether the database answers.
pub async fn is_reachable(db: &DatabaseConnection) -> bool {
    matches!(timeout(CONNECT_TIMEOUT, db.execute_unprepared("SELECT 1")).await, Ok(Ok(_)))
}

/// What a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// `PostgreSQL 15.8`, `SQLite 3.51.3`.
    pub version: String,
    /// Whether nothing can be written to it; a file of which that is so is not even opened.
    pub is_read_only: bool,
}

/// What this database is.
///
/// # Errors
/// As of any statement.
pub async fn about(db: &DatabaseConnection) -> Result<About, DbErr> {
    let backend = db.get_database_backend();
    let question = match backend {
        DbBackend::Postgres => {
            "SELECT 'PostgreSQL ' || current_setting('server_version'), current_setting('transaction_read_only')"
        }
        _ => "SELECT 'SQLite ' || sqlite_version(), 'off'",
    };
    let answer = db.query_one_raw(Statement::from_string(backend, question)).await?;
    let answer = answer.ok_or_else(|| DbErr::RecordNotFound("what the database is".to_owned()))?;
    let read_only: String = answer.try_get_by_index(1)?;
    Ok(About { version: answer.try_get_by_index(0)?, is_read_only: read_only == "on" })
}

/// What to do about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The database is not there: nobody's failure. Wait until it is.
    Unreachable,
    /// Another transaction was in the way: the same again will do.
    Conflict,
    /// The data cannot be stored: the same will not do later either.
    Refused,
    /// Something else, which may pass: somebody restores a table, or a password is being changed.
    Unknown,
}

/// What to do about `error`.
pub fn kind_of(error: &DbErr) -> ErrorKind {
    match error {
        DbErr::ConnectionAcquire(_) => ErrorKind::Unreachable,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => kind_of_sqlx(error),
        DbErr::Type(_) | DbErr::Json(_) => ErrorKind::Refused,
        _ => ErrorKind::Unknown,
    }
}

fn kind_of_sqlx(error: &SqlxError) -> ErrorKind {
    match error {
        SqlxError::Database(error) => error.code().map_or(ErrorKind::Unknown, |code| kind_of_code(&code)),
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::Protocol(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed => ErrorKind::Unreachable,
        SqlxError::Encode(_) => ErrorKind::Refused,
        _ => ErrorKind::Unknown,
    }
}

/// PostgreSQL's SQLSTATE (Appendix A of its manual) has five characters, SQLite's result codes are numbers.
fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        // Serialization failure, deadlock, a lock that was waited for too long, a row that somebody else was quicker with.
        "40001" | "40P01" | "55P03" | "57014" | "23505" => ErrorKind::Conflict,
        // Read-only: a standby before it is promoted. Idle in a transaction for too long.
        "25006" | "25P03" => ErrorKind::Unreachable,
        code if code.len() == 5 => kind_of_class(code),
        code => code.parse().map_or(ErrorKind::Unknown, kind_of_result),
    }
}

/// What kind of error it is, SQLite says in the lower byte.
fn kind_of_result(code: u32) -> ErrorKind {
    match code & 0xff {
        // SQLITE_BUSY, SQLITE_LOCKED.
        5 | 6 => ErrorKind::Conflict,
        // SQLITE_READONLY, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN.
        8 | 10 | 13 | 14 => ErrorKind::Unreachable,
        // SQLITE_TOOBIG, SQLITE_MISMATCH.
        18 | 20 => ErrorKind::Refused,
        // Of SQLITE_CONSTRAINT, CHECK and NOT NULL.
        19 if matches!(code, 275 | 1299) => ErrorKind::Refused,
        _ => ErrorKind::Unknown,
    }
}

fn kind_of_class(sqlstate: &str) -> ErrorKind {
    match sqlstate.get(..2).unwrap_or_default() {
        // Connection, resources, operator intervention, system error.
        "08" | "53" | "57" | "58" => ErrorKind::Unreachable,
        // Data, a limit of the program, a value that a constraint does not allow.
        "22" | "54" => ErrorKind::Refused,
        "23" if matches!(sqlstate, "23502" | "23514") => ErrorKind::Refused,
        _ => ErrorKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn insert(db: &DatabaseConnection, what: &str) -> Result<(), DbErr> {
        let tx = begin(db).await?;
        tx.execute_unprepared(&format!("INSERT INTO t VALUES ('{what}')")).await?;
        tx.commit().await
    }

    #[tokio::test]
    async fn what_is_committed_after_a_full_disk_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/some %20 name.db", folder.path().display());
        let db = connect(&SecretUrl::parse(&format!("{url}?mode=rwc")).unwrap(), 1).await.unwrap();
        db.execute_unprepared("CREATE TABLE t (what TEXT)").await.unwrap();
        db.execute_unprepared("PRAGMA max_page_count = 4").await.unwrap();
        let full = insert(&db, &"x".repeat(100_000)).await.unwrap_err();
        assert!(full.to_string().contains("full"), "{full}");
        db.execute_unprepared("PRAGMA max_page_count = 100000").await.unwrap();
        insert(&db, "after it").await.unwrap();
        let failing = begin(&db).await.unwrap();
        failing.execute_unprepared("INSERT INTO nowhere VALUES (1)").await.unwrap_err();
        failing.rollback().await.unwrap();
        insert(&db, "after a failure").await.unwrap();

        // As another process sees it.
        let other = connect(&SecretUrl::parse(&url).unwrap(), 1).await.unwrap();
        let count = Statement::from_string(DbBackend::Sqlite, "SELECT count(*) FROM t");
        let count: i64 = other.query_one_raw(count).await.unwrap().unwrap().try_get_by_index(0).unwrap();
        assert_eq!(count, 2);
        assert!(folder.path().join("some %20 name.db").exists());
    }

    #[test]
    fn codes_say_what_to_do() {
        for (code, kind) in [
            ("40P01", ErrorKind::Conflict),
            ("5", ErrorKind::Conflict),
            ("57014", ErrorKind::Conflict),
            ("57P01", ErrorKind::Unreachable),
            ("57P05", ErrorKind::Unreachable),
            ("28P01", ErrorKind::Unknown),
            ("42P01", ErrorKind::Unknown),
            ("08006", ErrorKind::Unreachable),
            ("22021", ErrorKind::Refused),
            ("23503", ErrorKind::Unknown),
            ("23514", ErrorKind::Refused),
            ("517", ErrorKind::Conflict),
            ("1032", ErrorKind::Unreachable),
            ("778", ErrorKind::Unreachable),
            ("13", ErrorKind::Unreachable),
            ("1299", ErrorKind::Refused),
            ("787", ErrorKind::Unknown),
            ("11", ErrorKind::Unknown),
        ] {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }
}
