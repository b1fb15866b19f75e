//! All or nothing, again at once where another transaction was in the way.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use rollcall_shared::causes::in_one_line;
use rollcall_shared::dead_letters;
use rollcall_shared::queue::Replay;
use rollcall_shared::store::{self, ErrorKind};
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr};
use tokio::time::timeout;
use tracing::debug;

use crate::worker::Failure;

/// A deadlock or a serialization failure is nobody's fault and costs no attempt; one that comes this often in a row is
/// a failure like any other.
const TRIES: usize = 10;

/// How long a transaction may take: a connection that has gone silent, behind a firewall say, never says that it has.
const LIMIT: Duration = Duration::from_mins(1);

/// Does `work` in a transaction, and all of it again if another one was in the way.
///
/// The transaction is lent in an `Arc`, which `work` drops when it is done: a future that borrows from its caller cannot be
/// said to be `Send` yet.
///
/// # Errors
/// What `work` says, or the database; nothing has changed then.
pub(crate) async fn transaction<T, F: Future<Output = Result<T, Failure>>>(
    db: &DatabaseConnection,
    work: impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<T, Failure> {
    for _ in 1..TRIES {
        match in_time(once(db, &work)).await {
            Err(Failure::Transient(error)) if is_conflict(&error) => debug!(error = in_one_line(&error), "again"),
            done => return done,
        }
    }
    in_time(once(db, &work)).await
}

/// Makes a batch take effect: does `work` in a transaction, and in the same one marks the dead letters among the batch as
/// applied. All of it again if another transaction was in the way.
///
/// # Errors
/// As [`transaction`].
pub(crate) async fn apply<F: Future<Output = Result<(), Failure>>>(
    db: &DatabaseConnection,
    replays: &[Replay],
    work: impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<(), Failure> {
    let work = &work;
    transaction(db, |tx| async move {
        work(tx.clone()).await?;
        Ok(dead_letters::applied(&tx, replays).await?)
    })
    .await
}

/// Does something with the database in no more time than a transaction may take.
///
/// # Errors
/// What `work` says, or that the database is not there.
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let silent = || Failure::Unreachable(anyhow!("the database has not answered within {LIMIT:?}"));
    timeout(LIMIT, work).await.unwrap_or_else(|_| Err(silent()))
}

async fn once<T, F: Future<Output = Result<T, Failure>>>(
    db: &DatabaseConnection,
    work: &impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<T, Failure> {
    let tx = Arc::new(store::begin(db).await?);
    let done = work(tx.clone()).await?;
    let tx = Arc::into_inner(tx).ok_or_else(|| Failure::Permanent(anyhow!("a rule has kept its transaction")))?;
    tx.commit().await?;
    Ok(done)
}

fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<DbErr>().is_some_and(|error| store::kind_of(error) == ErrorKind::Conflict)
}
