//! Transactions of rules, which fail as rules do.

use std::sync::Arc;

use rollcall_shared::dead_letters;
use rollcall_shared::queue::Replayed;
use rollcall_shared::store::{self, Failed};
use sea_orm::{DatabaseConnection, DatabaseTransaction, DbErr};

use crate::worker::Failure;

/// See [`store::transaction`].
pub(crate) async fn transaction<T, F: Future<Output = Result<T, Failure>>>(
    db: &DatabaseConnection,
    work: impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<T, Failure> {
    store::transaction(db, work).await
}

/// Makes a batch take effect: does `work` in a transaction, and in the same one marks the dead letters among the batch as
/// applied. All of it again if another transaction was in the way.
///
/// # Errors
/// As [`transaction`].
pub(crate) async fn apply<F: Future<Output = Result<(), Failure>>>(
    db: &DatabaseConnection,
    replays: &[Replayed],
    work: impl Fn(Arc<DatabaseTransaction>) -> F,
) -> Result<(), Failure> {
    let work = &work;
    transaction(db, |tx| async move {
        work(tx.clone()).await?;
        Ok(dead_letters::applied(&tx, replays).await?)
    })
    .await
}

/// See [`store::in_time`].
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    store::in_time(work).await
}

impl Failed for Failure {
    fn database_error(&self) -> Option<&DbErr> {
        self.error().downcast_ref()
    }
}
