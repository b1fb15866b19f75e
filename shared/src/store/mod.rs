//! The database that integrators read: connecting to it, its tables ([`entity`]), and what its errors mean.

pub mod entity;

use std::time::Duration;

use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbErr, RuntimeErr};
use sqlx::Error as SqlxError;

use crate::config::SecretUrl;

/// How long to wait for a connection, from the pool or to the server, before the database counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the database at `url`, with at most `connections` at once.
///
/// # Errors
/// It cannot be reached, or refuses the user. The error has no password in it.
pub async fn connect(url: &SecretUrl, connections: u32) -> Result<DatabaseConnection, DbErr> {
    let mut options = ConnectOptions::new(url.expose());
    options
        .max_connections(connections)
        .connect_timeout(CONNECT_TIMEOUT)
        .acquire_timeout(CONNECT_TIMEOUT)
        .test_before_acquire(false)
        .sqlx_logging(false);
    Database::connect(options).await
}

/// Whether the database answers.
pub async fn is_reachable(db: &DatabaseConnection) -> bool {
    matches!(tokio::time::timeout(CONNECT_TIMEOUT, db.execute_unprepared("SELECT 1")).await, Ok(Ok(_)))
}

/// What to do about a failed statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The database is not there: nobody's failure. Wait until it is.
    Unreachable,
    /// Another transaction was in the way: the same again will do.
    Conflict,
    /// The database is there and does not take it.
    Refused,
}

/// What to do about `error`.
pub fn kind_of(error: &DbErr) -> ErrorKind {
    match error {
        DbErr::ConnectionAcquire(_) => ErrorKind::Unreachable,
        DbErr::Conn(RuntimeErr::SqlxError(error))
        | DbErr::Exec(RuntimeErr::SqlxError(error))
        | DbErr::Query(RuntimeErr::SqlxError(error)) => kind_of_sqlx(error),
        _ => ErrorKind::Refused,
    }
}

fn kind_of_sqlx(error: &SqlxError) -> ErrorKind {
    match error {
        SqlxError::Database(error) => error.code().map_or(ErrorKind::Refused, |code| kind_of_code(&code)),
        SqlxError::Io(_)
        | SqlxError::Tls(_)
        | SqlxError::Protocol(_)
        | SqlxError::PoolTimedOut
        | SqlxError::PoolClosed
        | SqlxError::WorkerCrashed => ErrorKind::Unreachable,
        _ => ErrorKind::Refused,
    }
}

/// PostgreSQL's SQLSTATE (Appendix A of its manual) has five characters, SQLite's result codes are numbers.
fn kind_of_code(code: &str) -> ErrorKind {
    match code {
        // Serialization failure, deadlock; SQLITE_BUSY and its extended codes, SQLITE_LOCKED.
        "40001" | "40P01" | "5" | "261" | "517" | "773" | "6" | "262" => ErrorKind::Conflict,
        // Disk full, out of memory, too many connections, admin shutdown, crash shutdown, cannot connect now; read-only: a
        // standby before it is promoted. SQLITE_FULL and SQLITE_IOERR.
        "53100" | "53200" | "53300" | "57P01" | "57P02" | "57P03" | "25006" | "13" | "10" => ErrorKind::Unreachable,
        code if code.len() == 5 && code.starts_with("08") => ErrorKind::Unreachable,
        _ => ErrorKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_to_do() {
        for (code, kind) in [
            ("40P01", ErrorKind::Conflict),
            ("5", ErrorKind::Conflict),
            ("57P01", ErrorKind::Unreachable),
            ("08006", ErrorKind::Unreachable),
            ("22021", ErrorKind::Refused),
            ("23503", ErrorKind::Refused),
            ("787", ErrorKind::Refused),
        ] {
            assert_eq!(kind_of_code(code), kind, "{code}");
        }
    }
}
