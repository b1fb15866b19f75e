//! All or nothing, again at once where another transaction was in the way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr, RuntimeErr};
use sqlx::Error as SqlxError;
use tokio::time::timeout;
use tracing::debug;

use super::{ErrorKind, begin, kind_of};

/// A deadlock or a serialization failure is nobody's fault and costs no attempt; one that comes this often in a row is
/// a failure like any other.
const TRIES: usize = 10;

/// How long a transaction may take: a connection that has gone silent, behind a firewall say, never says that it has.
pub const TRANSACTION_LIMIT: Duration = Duration::from_mins(1);

/// What a transaction may fail with: the database's errors, and perhaps others.
pub trait Failed: From<DbErr> {
    /// The database's error, where it is one.
    fn database_error(&self) -> Option<&DbErr>;
}

impl Failed for DbErr {
    fn database_error(&self) -> Option<&DbErr> {
        Some(self)
    }
}

/// Does `work` in a transaction that will write (see [`begin`]), and all of it again if another one was in the way.
///
/// The transaction is lent in an `Arc`, which `work` drops when it is done: a future that borrows from its caller cannot be
/// said to be `Send` yet.
///
/// # Errors
/// What `work` says, or the database; nothing has changed then.
pub async fn transaction<T, E: Failed, F: Future<Output = Result<T, E>>>(
    db: &DatabaseConnection,
    work: impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<T, E> {
    for _ in 1..TRIES {
        match in_time(once(db, &work)).await {
            Err(error) if is_conflict(&error) => debug!(error = ?error.database_error(), "again"),
            done => return done,
        }
    }
    in_time(once(db, &work)).await
}

/// Does something with the database in no more time than a transaction may take.
///
/// # Errors
/// What `work` says, or that the database is not there.
pub async fn in_time<T, E: Failed>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    timeout(TRANSACTION_LIMIT, work).await.unwrap_or_else(|_| Err(silent().into()))
}

fn silent() -> DbErr {
    let error =
        io::Error::new(io::ErrorKind::TimedOut, format!("the database has not answered within {TRANSACTION_LIMIT:?}"));
    DbErr::Conn(RuntimeErr::SqlxError(Arc::new(SqlxError::Io(error))))
}

async fn once<T, E: Failed, F: Future<Output = Result<T, E>>>(
    db: &DatabaseConnection,
    work: &impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<T, E> {
    let tx = Arc::new(begin(db).await?);
    let done = work(tx.clone()).await?;
    let tx = Arc::into_inner(tx).ok_or_else(|| DbErr::Custom("the work has kept its transaction".into()))?;
    tx.commit().await?;
    Ok(done)
}

fn is_conflict(error: &impl Failed) -> bool {
    error.database_error().is_some_and(|error| kind_of(error) == ErrorKind::Conflict)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use sea_orm::ConnectionTrait as _;

    use super::*;
    use crate::config::SecretUrl;
    use crate::store::connect;

    #[test]
    fn a_database_that_is_silent_is_not_there() {
        assert_eq!(kind_of(&silent()), ErrorKind::Unreachable);
    }

    #[tokio::test]
    async fn what_was_in_the_way_is_done_again_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/t.db?mode=rwc", folder.path().display());
        let db = connect(&SecretUrl::parse(&url).unwrap(), 1).await.unwrap();
        db.execute_unprepared("CREATE TABLE t (what TEXT PRIMARY KEY)").await.unwrap();
        let (tries, busy) = (Cell::new(0), busy(&folder).await);
        let work = async |conflicts: usize| {
            tries.set(0);
            transaction(&db, |tx| async {
                let tx = tx;
                tx.execute_unprepared("INSERT INTO t VALUES ('x')").await?;
                tries.set(tries.get() + 1);
                if tries.get() <= conflicts { Err(busy.clone()) } else { Ok(()) }
            })
            .await
        };
        work(TRIES).await.unwrap_err();
        assert_eq!(tries.get(), TRIES);
        work(3).await.unwrap();
        assert_eq!(tries.get(), 4);
        // It is there already: no conflict, so it is told at once.
        tries.set(0);
        assert!(!is_conflict(&work(0).await.unwrap_err()));
        assert_eq!(tries.get(), 0);
    }

    /// What SQLite says while another connection writes.
    async fn busy(folder: &tempfile::TempDir) -> DbErr {
        let url = format!("sqlite://{}/busy.db?mode=rwc", folder.path().display());
        let open = async || connect(&SecretUrl::parse(&url).unwrap(), 1).await.unwrap();
        let (one, other) = (open().await, open().await);
        other.execute_unprepared("PRAGMA busy_timeout = 0").await.unwrap();
        let writing = begin(&one).await.unwrap();
        let busy = begin(&other).await.unwrap_err();
        assert!(is_conflict(&busy));
        writing.rollback().await.unwrap();
        busy
    }
}
