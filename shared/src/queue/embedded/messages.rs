//! The statements: messages in, out, elsewhere. Each is called in a transaction.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, FromRow, Row as _};
use uuid::Uuid;

use crate::queue::{DeadKind, Death, Message, Replay};

/// How many rows one statement inserts. Statements are kept prepared, so there are few lengths.
const ROWS: [usize; 3] = [64, 8, 1];

/// A message that is in the file.
#[derive(Debug)]
pub(in crate::queue) struct Stored {
    pub(in crate::queue) seq: i64,
    pub(in crate::queue) queue: String,
    /// How often whoever had it, alone, died with it.
    pub(in crate::queue) deaths: i64,
    /// Why it is dead, if it is.
    pub(in crate::queue) death: Option<Death>,
    pub(in crate::queue) message: Message,
}

/// Where a message goes.
#[derive(Debug)]
pub(in crate::queue) struct Place {
    pub(in crate::queue) queue: String,
    /// When it goes on from there to its worker's queue.
    pub(in crate::queue) due_at: Option<DateTime<Utc>>,
    /// Of what is dead.
    pub(in crate::queue) death: Option<Death>,
}

/// Adds messages to the ends of queues, in this order.
pub(in crate::queue) async fn insert(tx: &mut SqliteConnection, messages: &[(&str, Message)]) -> sqlx::Result<()> {
    let mut rest = messages;
    for rows in ROWS {
        while rest.len() >= rows {
            let (these, others) = rest.split_at(rows);
            insert_rows(tx, these).await?;
            rest = others;
        }
    }
    Ok(())
}

async fn insert_rows(tx: &mut SqliteConnection, messages: &[(&str, Message)]) -> sqlx::Result<()> {
    const ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let rows = vec![ROW; messages.len()].join(", ");
    let statement = format!(
        "INSERT INTO message (queue, id, event_id, event, source, room_id, received_at, traceparent, \
         attempt, first_failed_at, last_error, dead_letter_id, replay, body) VALUES {rows}"
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for (queue, message) in messages {
        query = query
            .bind(*queue)
            .bind(message.id.to_string())
            .bind(&message.event_id)
            .bind(&message.event)
            .bind(&message.source)
            .bind(&message.room_id)
            .bind(message.received_at.timestamp_millis())
            .bind(&message.traceparent)
            .bind(message.attempt)
            .bind(message.first_failed_at.map(|at| at.timestamp_millis()))
            .bind(&message.last_error)
            .bind(message.replay.map(|replay| replay.dead_letter_id))
            .bind(message.replay.map(|replay| replay.number))
            .bind(&message.body[..]);
    }
    query.execute(tx).await.map(|_| ())
}

/// The first messages of a queue, among those that `range` has, that nobody has; now `holder` has them.
pub(in crate::queue) async fn take(
    tx: &mut SqliteConnection,
    queue: &str,
    holder: &str,
    range: RangeInclusive<i64>,
    most: usize,
) -> sqlx::Result<Vec<Stored>> {
    let taken: Vec<Stored> = sqlx::query_as(
        "SELECT * FROM message WHERE queue = ? AND seq BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq) \
         ORDER BY seq LIMIT ?",
    )
    .bind(queue)
    .bind(range.start())
    .bind(range.end())
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(&mut *tx)
    .await?;
    let seqs = list(taken.iter().map(|stored| stored.seq));
    sqlx::query("INSERT INTO lease (seq, holder) SELECT value, ? FROM json_each(?)")
        .bind(holder)
        .bind(seqs)
        .execute(tx)
        .await?;
    Ok(taken)
}

/// Removes what is done.
pub(in crate::queue) async fn delete(
    tx: &mut SqliteConnection,
    seqs: impl IntoIterator<Item = i64>,
) -> sqlx::Result<()> {
    let seqs = list(seqs);
    sqlx::query("DELETE FROM message WHERE seq IN (SELECT value FROM json_each(?))")
        .bind(&seqs)
        .execute(&mut *tx)
        .await?;
    sqlx::query("DELETE FROM lease WHERE seq IN (SELECT value FROM json_each(?))").bind(&seqs).execute(tx).await?;
    Ok(())
}

/// Moves a message elsewhere, as it is now.
pub(in crate::queue) async fn move_to(
    tx: &mut SqliteConnection,
    seq: i64,
    message: &Message,
    place: &Place,
) -> sqlx::Result<()> {
    let death = place.death.as_ref();
    sqlx::query(
        "INSERT INTO message (queue, due_at, id, event_id, event, source, room_id, received_at, traceparent, body, \
         dead_letter_id, replay, attempt, first_failed_at, last_error, dead_kind, cause, host, last_failed_at) \
         SELECT ?, ?, id, event_id, event, source, room_id, received_at, traceparent, body, dead_letter_id, replay, \
         ?, ?, ?, ?, ?, ?, ? FROM message WHERE seq = ?",
    )
    .bind(&place.queue)
    .bind(place.due_at.map(|at| at.timestamp_millis()))
    .bind(message.attempt)
    .bind(message.first_failed_at.map(|at| at.timestamp_millis()))
    .bind(&message.last_error)
    .bind(death.map(|death| death.kind.as_str()))
    .bind(death.map(|death| &death.cause))
    .bind(death.map(|death| &death.host))
    .bind(death.map(|death| death.at.timestamp_millis()))
    .bind(seq)
    .execute(&mut *tx)
    .await?;
    delete(tx, [seq]).await
}

/// When what waits is due: once its time has come, and also where that is farther away than anything is ever put off. It was
/// put off by a clock that has been set back since, and nobody can say how long it has waited.
#[derive(Debug, Clone, Copy)]
pub(in crate::queue) struct Due {
    until: i64,
    beyond: i64,
}

impl Due {
    /// What is due now of what is put off for `longest` at most.
    pub(in crate::queue) fn now(longest: Duration) -> Self {
        let now = Utc::now().timestamp_millis();
        let longest = i64::try_from(longest.as_millis()).unwrap_or(i64::MAX);
        Self { until: now, beyond: now.saturating_add(longest) }
    }
}

/// Puts what is due, and nobody is taking out, at the end of the queue that it waits for, but no more than `most`: a transaction that takes long keeps
/// everybody waiting. How many it were.
pub(in crate::queue) async fn move_due(
    tx: &mut SqliteConnection,
    waiting: &str,
    due: Due,
    queue: &str,
    most: u32,
) -> sqlx::Result<usize> {
    // The plus keeps SQLite from reading through all that waits.
    let due: Vec<i64> = sqlx::query_scalar(
        "SELECT seq FROM message WHERE (due_at <= ? OR due_at > ?) AND +queue = ? \
         AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq) ORDER BY due_at, seq LIMIT ?",
    )
    .bind(due.until)
    .bind(due.beyond)
    .bind(waiting)
    .bind(most)
    .fetch_all(&mut *tx)
    .await?;
    for seq in &due {
        relocate(tx, *seq, queue, 0).await?;
    }
    Ok(due.len())
}

/// What a holder has.
pub(in crate::queue) async fn held_by(tx: &mut SqliteConnection, holder: &str) -> sqlx::Result<Vec<Stored>> {
    sqlx::query_as("SELECT * FROM message WHERE seq IN (SELECT seq FROM lease WHERE holder = ?) ORDER BY seq")
        .bind(holder)
        .fetch_all(tx)
        .await
}

/// Moves a message that is not dead, as it is in the file.
pub(in crate::queue) async fn relocate(
    tx: &mut SqliteConnection,
    seq: i64,
    queue: &str,
    deaths: i64,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO message (queue, deaths, id, event_id, event, source, room_id, received_at, traceparent, body, \
         dead_letter_id, replay, attempt, first_failed_at, last_error) \
         SELECT ?, ?, id, event_id, event, source, room_id, received_at, traceparent, body, \
         dead_letter_id, replay, attempt, first_failed_at, last_error FROM message WHERE seq = ?",
    )
    .bind(queue)
    .bind(deaths)
    .bind(seq)
    .execute(&mut *tx)
    .await?;
    delete(tx, [seq]).await
}

/// Everybody who has something.
pub(in crate::queue) async fn holders(connection: &mut SqliteConnection) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar("SELECT DISTINCT holder FROM lease").fetch_all(connection).await
}

/// Whether nobody has the next of a queue.
pub(in crate::queue) async fn has_any(connection: &mut SqliteConnection, queue: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM message WHERE queue = ? \
         AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq))",
    )
    .bind(queue)
    .fetch_one(connection)
    .await
}

/// Whether something of a queue is due.
pub(in crate::queue) async fn has_due(
    connection: &mut SqliteConnection,
    waiting: &str,
    due: Due,
) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM message WHERE (due_at <= ? OR due_at > ?) AND +queue = ?)")
        .bind(due.until)
        .bind(due.beyond)
        .bind(waiting)
        .fetch_one(connection)
        .await
}

/// Changes whenever another connection has written.
pub(in crate::queue) async fn data_version(connection: &mut SqliteConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await
}

/// How the file's space is used, in bytes.
#[derive(Debug)]
pub(in crate::queue) struct Space {
    pub(in crate::queue) used: u64,
    /// In pages that are used again before the file grows.
    pub(in crate::queue) free: u64,
}

/// How the file's space is used.
pub(in crate::queue) async fn space(connection: &mut SqliteConnection) -> sqlx::Result<Space> {
    let (all, free): (i64, i64) = sqlx::query_as(
        "SELECT page_count * page_size, freelist_count * page_size \
         FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
    )
    .fetch_one(connection)
    .await?;
    let bytes = |number: i64| number.try_into().unwrap_or_default();
    Ok(Space { used: bytes(all - free), free: bytes(free) })
}

/// Gives up to so many of the file's free pages back to the disk, which has them after the next checkpoint.
pub(in crate::queue) async fn shrink(connection: &mut SqliteConnection, pages: u32) -> sqlx::Result<()> {
    let shrink = AssertSqlSafe(format!("PRAGMA incremental_vacuum({pages})"));
    sqlx::query(shrink).fetch_all(connection).await.map(|_| ())
}

/// Brings what is in the log to its place, as far as nobody reads it.
pub(in crate::queue) async fn checkpoint(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_all(connection).await.map(|_| ())
}

/// Writes something that is gone again when it is committed: whether the disk takes it is what shows.
pub(in crate::queue) async fn leave_no_trace(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    // Nothing has that number: the first message has 1.
    sqlx::raw_sql("INSERT INTO lease (seq, holder) VALUES (0, ''); DELETE FROM lease WHERE seq = 0")
        .execute(connection)
        .await
        .map(|_| ())
}

/// How much is in a queue.
#[derive(Debug)]
pub(in crate::queue) struct Depth {
    pub(in crate::queue) messages: u64,
    /// When the first of them was taken in.
    pub(in crate::queue) oldest: Option<DateTime<Utc>>,
    /// In use in the whole file.
    pub(in crate::queue) bytes: u64,
}

/// How much is in a queue.
pub(in crate::queue) async fn depth(connection: &mut SqliteConnection, queue: &str) -> sqlx::Result<Depth> {
    let messages: i64 = sqlx::query_scalar("SELECT count(*) FROM message WHERE queue = ?")
        .bind(queue)
        .fetch_one(&mut *connection)
        .await?;
    let oldest: Option<i64> =
        sqlx::query_scalar("SELECT received_at FROM message WHERE queue = ? ORDER BY seq LIMIT 1")
            .bind(queue)
            .fetch_optional(&mut *connection)
            .await?;
    Ok(Depth {
        messages: messages.try_into().unwrap_or_default(),
        oldest: oldest.and_then(DateTime::from_timestamp_millis),
        bytes: space(connection).await?.used,
    })
}

/// What is in one queue.
#[derive(Debug, Clone, Default)]
pub(in crate::queue) struct InQueue {
    pub(in crate::queue) name: String,
    pub(in crate::queue) messages: u64,
    /// Those of them that somebody has.
    pub(in crate::queue) taken: u64,
    /// When the oldest that nobody has was taken in.
    pub(in crate::queue) oldest: Option<DateTime<Utc>>,
}

/// What is in each queue that holds anything. What one has who `is_gone` nobody has.
pub(in crate::queue) async fn depths(
    connection: &mut SqliteConnection,
    is_gone: impl Fn(&str) -> bool,
) -> sqlx::Result<Vec<InQueue>> {
    let rows: Vec<(String, Option<String>, i64, i64)> = sqlx::query_as(
        "SELECT queue, holder, count(*), min(received_at) FROM message LEFT JOIN lease USING (seq) GROUP BY queue, holder",
    )
    .fetch_all(connection)
    .await?;
    let mut queues = BTreeMap::<String, InQueue>::new();
    for (name, holder, count, oldest) in rows {
        let queue = queues.entry(name.clone()).or_insert_with(|| InQueue { name, ..InQueue::default() });
        let count = u64::try_from(count).unwrap_or_default();
        queue.messages += count;
        if holder.is_some_and(|holder| !is_gone(&holder)) {
            queue.taken += count;
        } else {
            queue.oldest = [queue.oldest, Some(time(oldest))].into_iter().flatten().min();
        }
    }
    Ok(queues.into_values().collect())
}

/// The last message of a queue, if it has any.
pub(in crate::queue) async fn last(connection: &mut SqliteConnection, queue: &str) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("SELECT max(seq) FROM message WHERE queue = ?").bind(queue).fetch_one(connection).await
}

/// How many of a queue's first messages up to `last` that nobody has come to `bytes` at most: one at least, if there is one, and
/// `most` at most.
pub(in crate::queue) async fn fitting(
    connection: &mut SqliteConnection,
    queue: &str,
    last: i64,
    most: usize,
    bytes: usize,
) -> sqlx::Result<usize> {
    let lengths: Vec<i64> = sqlx::query_scalar(
        "SELECT length(body) FROM message WHERE queue = ? AND seq <= ? \
         AND NOT EXISTS (SELECT 1 FROM lease WHERE lease.seq = message.seq) ORDER BY seq LIMIT ?",
    )
    .bind(queue)
    .bind(last)
    .bind(i64::try_from(most).unwrap_or(i64::MAX))
    .fetch_all(connection)
    .await?;
    let mut sum = 0;
    let fits = |length: &&i64| {
        sum += usize::try_from(**length).unwrap_or_default();
        sum <= bytes
    };
    Ok(lengths.iter().take_while(fits).count().max(lengths.len().min(1)))
}

/// Nobody has any more what one has who is gone.
pub(in crate::queue) async fn release_all(tx: &mut SqliteConnection, holder: &str) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM lease WHERE holder = ?").bind(holder).execute(tx).await.map(|_| ())
}

/// Empties every queue.
pub(in crate::queue) async fn delete_all(tx: &mut SqliteConnection) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM lease").execute(&mut *tx).await?;
    sqlx::query("DELETE FROM message").execute(tx).await.map(|_| ())
}

/// As a list for `json_each`: one statement, whatever its length.
fn list(seqs: impl IntoIterator<Item = i64>) -> String {
    let seqs: Vec<_> = seqs.into_iter().map(|seq| seq.to_string()).collect();
    format!("[{}]", seqs.join(","))
}

impl FromRow<'_, SqliteRow> for Stored {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        let id: &str = row.try_get("id")?;
        let body: &[u8] = row.try_get("body")?;
        Ok(Self {
            seq: row.try_get("seq")?,
            queue: row.try_get("queue")?,
            deaths: row.try_get("deaths")?,
            death: death(row)?,
            message: Message {
                id: id.parse().unwrap_or_else(|_| Uuid::now_v7()),
                event_id: row.try_get("event_id")?,
                event: row.try_get("event")?,
                source: row.try_get("source")?,
                room_id: row.try_get("room_id")?,
                received_at: time(row.try_get("received_at")?),
                traceparent: row.try_get("traceparent")?,
                attempt: row.try_get("attempt")?,
                first_failed_at: row.try_get::<Option<i64>, _>("first_failed_at")?.map(time),
                last_error: row.try_get("last_error")?,
                replay: replay(row)?,
                body: Bytes::copy_from_slice(body),
            }
            .bounded(),
        })
    }
}

fn time(at: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(at).unwrap_or_default()
}

fn death(row: &SqliteRow) -> sqlx::Result<Option<Death>> {
    let Some(kind) = row.try_get::<Option<&str>, _>("dead_kind")?.and_then(DeadKind::parse) else { return Ok(None) };
    let cause: Option<String> = row.try_get("cause")?;
    Ok(Some(Death {
        kind,
        // What an older version has buried says none.
        cause: cause.unwrap_or_else(|| kind.as_str().to_owned()),
        host: row.try_get::<Option<String>, _>("host")?.unwrap_or_default(),
        at: time(row.try_get::<Option<i64>, _>("last_failed_at")?.unwrap_or_default()),
    }))
}

fn replay(row: &SqliteRow) -> sqlx::Result<Option<Replay>> {
    let dead_letter_id: Option<i64> = row.try_get("dead_letter_id")?;
    let number: Option<i32> = row.try_get("replay")?;
    Ok(dead_letter_id.zip(number).map(|(dead_letter_id, number)| Replay { dead_letter_id, number }))
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::super::File;
    use super::*;

    const LONGEST: Duration = Duration::from_mins(30);

    #[tokio::test]
    async fn what_is_due_farther_away_than_anything_is_put_off_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(&folder.path().join("queue.db")).await.unwrap();
        let mut connection = file.writer().await.unwrap();
        let message = Message::new("main", "participant_joined", Bytes::from_static(b"{}"));
        for (minutes, is_due) in [(-1, true), (29, false), (31, true), (60, true)] {
            insert(&mut connection, &[("attendance", message.clone())]).await.unwrap();
            let taken = take(&mut connection, "attendance", "somebody", 0..=i64::MAX, 1).await.unwrap();
            let due_at = Some(Utc::now() + TimeDelta::minutes(minutes));
            let place = Place { queue: "attendance.retry".into(), due_at, death: None };
            move_to(&mut connection, taken[0].seq, &message, &place).await.unwrap();
            let found = has_due(&mut connection, "attendance.retry", Due::now(LONGEST)).await.unwrap();
            assert_eq!(found, is_due, "in {minutes} minutes");
            let due = Due::now(LONGEST);
            let moved = move_due(&mut connection, "attendance.retry", due, "elsewhere", 200).await.unwrap();
            assert_eq!(moved, usize::from(is_due), "in {minutes} minutes");
        }
    }

    #[tokio::test]
    async fn of_a_great_many_that_are_due_only_some_are_moved_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = File::open(&folder.path().join("queue.db")).await.unwrap();
        let mut connection = file.writer().await.unwrap();
        let message = Message::new("main", "participant_joined", Bytes::from_static(b"{}"));
        insert(&mut connection, &vec![("attendance", message.clone()); 500]).await.unwrap();
        let due_at = Some(Utc::now() - TimeDelta::from_std(Duration::from_secs(1)).unwrap());
        for stored in take(&mut connection, "attendance", "somebody", 0..=i64::MAX, 500).await.unwrap() {
            let place = Place { queue: "attendance.retry".into(), due_at, death: None };
            move_to(&mut connection, stored.seq, &message, &place).await.unwrap();
        }
        for moved in [200, 200, 100, 0] {
            let due = has_due(&mut connection, "attendance.retry", Due::now(LONGEST)).await.unwrap();
            assert_eq!(due, moved > 0);
            let due = Due::now(LONGEST);
            assert_eq!(move_due(&mut connection, "attendance.retry", due, "attendance", 200).await.unwrap(), moved);
        }
        assert_eq!(depth(&mut connection, "attendance").await.unwrap().messages, 500);
        assert_eq!(holders(&mut connection).await.unwrap(), Vec::<String>::new());
    }
}
