//! Who fetches a recording now: a row in `recording_lease` that its holder renews.
//!
//! All times are the database's, so the workers' clocks do not matter. A lease that is not renewed runs out and the next to
//! ask has it; the former holder finds out when it renews, or at the latest in the transaction that would make the
//! recording ready. A job that outlives its delivery leaves its failure in the row for whoever asks next.
//!
//! The row also counts the holders that were taken for dead, one after the other: a recording that kills whoever fetches it has no
//! delivery that could be blamed, since its job goes on without one. A job that is done takes the row and so the count away; one that
//! was alive after all takes its own death back. Whichever of several jobs killed their process, all of them are counted: so one
//! that has its [last chance](is_last_chance) is done alone, and it is its own death that makes it poison.

use std::time::Duration;

use rollcall_shared::store::Clock;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, Statement, Value};
use uuid::Uuid;

use crate::cause::{self, Told};
use crate::transaction::{in_time, transaction};
use crate::worker::Failure;

/// How many holders a recording may kill: then it is poison.
const MOST_DEATHS: i32 = 3;
/// How soon a renewal that the database did not take is tried again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// The right to fetch one recording.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    db: DatabaseConnection,
    recording_id: i64,
    holder: String,
    length: Duration,
}

/// What asking for a lease came to.
#[derive(Debug)]
pub(super) enum Asked {
    /// It is ours.
    Ours(Lease),
    /// Another job has it.
    Held,
    /// A job that outlived its delivery has failed like this; told once.
    Failed(Failure),
    /// It has killed too many of those who had it; told to everybody until [`begin_anew`].
    Poison,
}

impl Lease {
    /// Asks for the lease of a recording.
    pub(super) async fn ask(db: &DatabaseConnection, recording_id: i64, length: Duration) -> Result<Asked, Failure> {
        let lease = Self { db: db.clone(), recording_id, holder: Uuid::new_v4().to_string(), length };
        let lease = &lease;
        transaction(db, |tx| async move {
            if let Some(failure) = take_failure(&tx, recording_id).await? {
                return Ok(Asked::Failed(failure));
            }
            Ok(match lease.take(&*tx).await? {
                Some(deaths) if deaths < MOST_DEATHS => Asked::Ours(lease.clone()),
                Some(_) => Asked::Poison,
                None if is_poison(&tx, recording_id).await? => Asked::Poison,
                None => Asked::Held,
            })
        })
        .await
    }

    /// The job's own name.
    pub(super) fn holder(&self) -> &str {
        &self.holder
    }

    /// Makes it ours, if it is free or has run out: how many holders have died then.
    async fn take(&self, db: &impl ConnectionTrait) -> Result<Option<i32>, DbErr> {
        let clock = Clock::of(db);
        // A second job waits here for the first one's commit and then sees its row.
        let sql = format!(
            "INSERT INTO recording_lease (recording_id, holder, expires_at, length_seconds) VALUES ($1, $2, {after}, $3) \
             ON CONFLICT (recording_id) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, \
             length_seconds = excluded.length_seconds, deaths = recording_lease.deaths + 1 \
             WHERE {is_over} AND recording_lease.deaths < {MOST_DEATHS} AND recording_lease.failure IS NULL \
             RETURNING deaths",
            after = clock.after(self.length),
            is_over = clock.is_over("recording_lease.expires_at", "recording_lease.length_seconds"),
        );
        let values = [self.recording_id.into(), self.holder.as_str().into(), self.length.as_secs_f64().into()];
        let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
        db.query_one_raw(statement).await?.map(|row| row.try_get("", "deaths")).transpose()
    }

    /// Says that the holder lives whose lease is another's now: it was taken for dead. Where the others are done with the
    /// recording, there is nothing left to say.
    pub(super) async fn take_death_back(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let sql =
            "UPDATE recording_lease SET deaths = deaths - 1 WHERE recording_id = $1 AND holder <> $2 AND deaths > 0";
        self.change(tx, sql.into()).await.map(|_| ())
    }

    /// Keeps the lease; returns when it is lost to another job.
    pub(super) async fn keep(&self) {
        let mut pause = self.length / 3;
        loop {
            tokio::time::sleep(pause).await;
            pause = match self.renew().await {
                Ok(true) => self.length / 3,
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(recording = self.recording_id, %error, "a lease could not be renewed");
                    RENEW_AGAIN.min(self.length / 3)
                }
            };
        }
    }

    /// Holds the lease for another while; `false` if somebody else has it. One that has run out and that nobody took will do.
    async fn renew(&self) -> Result<bool, Failure> {
        let after = Clock::of(&self.db).after(self.length);
        let sql = format!("UPDATE recording_lease SET expires_at = {after} WHERE recording_id = $1 AND holder = $2");
        in_time(async { Ok(self.change(&self.db, sql).await?) }).await
    }

    /// Gives the lease back in the transaction that makes use of it: `false` if it is not ours any more.
    pub(super) async fn end(&self, tx: &DatabaseTransaction) -> Result<bool, DbErr> {
        self.change(tx, "DELETE FROM recording_lease WHERE recording_id = $1 AND holder = $2".into()).await
    }

    /// Gives the lease back and leaves `failure` for whoever asks next: `false` if it is not ours any more.
    pub(super) async fn end_with(&self, tx: &DatabaseTransaction, failure: &Failure) -> Result<bool, DbErr> {
        let sql = "UPDATE recording_lease SET failure = $3, failure_is_permanent = $4, failure_cause = $5 \
                   WHERE recording_id = $1 AND holder = $2";
        let permanent = matches!(failure, Failure::Permanent(_));
        let values = [
            self.recording_id.into(),
            self.holder.as_str().into(),
            failure.to_string().into(),
            permanent.into(),
            failure.cause().into(),
        ];
        Ok(execute(tx, sql.into(), values).await? == 1)
    }

    async fn change(&self, db: &impl ConnectionTrait, sql: String) -> Result<bool, DbErr> {
        Ok(execute(db, sql, [self.recording_id.into(), self.holder.as_str().into()]).await? == 1)
    }
}

/// Whether a recording is poison if it kills the next holder too.
pub(super) async fn is_last_chance(db: &DatabaseConnection, recording_id: i64) -> Result<bool, Failure> {
    let is_over = Clock::of(db).is_over("expires_at", "length_seconds");
    let sql = format!(
        "SELECT 1 FROM recording_lease WHERE recording_id = $1 AND failure IS NULL \
         AND deaths + CASE WHEN {is_over} THEN 1 ELSE 0 END >= {MOST_DEATHS} - 1"
    );
    let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, [recording_id.into()]);
    in_time(async { Ok(db.query_one_raw(statement).await?.is_some()) }).await
}

/// Whether a recording has killed too many of those who had it.
pub(super) async fn is_poison(tx: &DatabaseTransaction, recording_id: i64) -> Result<bool, DbErr> {
    let sql = format!("SELECT 1 FROM recording_lease WHERE recording_id = $1 AND deaths >= {MOST_DEATHS}");
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, [recording_id.into()]);
    Ok(tx.query_one_raw(statement).await?.is_some())
}

/// Forgets what a poisonous recording has done: somebody wants it to be tried again.
pub(super) async fn begin_anew(tx: &DatabaseTransaction, recording_id: i64) -> Result<(), DbErr> {
    let sql = format!("DELETE FROM recording_lease WHERE recording_id = $1 AND deaths >= {MOST_DEATHS}");
    execute(tx, sql, [recording_id.into()]).await.map(|_| ())
}

async fn take_failure(tx: &DatabaseTransaction, recording_id: i64) -> Result<Option<Failure>, DbErr> {
    let sql = "DELETE FROM recording_lease WHERE recording_id = $1 AND failure IS NOT NULL \
               RETURNING failure, failure_is_permanent, failure_cause";
    let statement = Statement::from_sql_and_values(tx.get_database_backend(), sql, [recording_id.into()]);
    let Some(row) = tx.query_one_raw(statement).await? else { return Ok(None) };
    let cause: Option<String> = row.try_get("", "failure_cause")?;
    let failure = Told::new(cause.unwrap_or_else(|| cause::OTHER.to_owned()), row.try_get::<String>("", "failure")?);
    let permanent = row.try_get("", "failure_is_permanent")?;
    Ok(Some(if permanent { Failure::permanent(failure) } else { Failure::transient(failure) }))
}

/// The holders of all leases. One that has run out may be renewed yet, when a database that was away is back.
pub(super) async fn holders(db: &DatabaseConnection) -> Result<Vec<String>, Failure> {
    let all = Statement::from_string(db.get_database_backend(), "SELECT holder FROM recording_lease");
    let rows = in_time(async { Ok(db.query_all_raw(all).await?) }).await?;
    Ok(rows.iter().map(|row| row.try_get("", "holder")).collect::<Result<_, DbErr>>()?)
}

async fn execute<const N: usize>(db: &impl ConnectionTrait, sql: String, values: [Value; N]) -> Result<u64, DbErr> {
    let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
    Ok(db.execute_raw(statement).await?.rows_affected())
}

#[cfg(test)]
mod tests;
