//! What workers write: that a message died, that it was applied after all; what an operator purged; and what is not kept any
//! longer. Doing any of it twice changes nothing.
//!
//! A message may be of anybody's making, so whatever a database might refuse of it is made good here ([`text`], [`time`]): one
//! that is refused would keep all others from being stored.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{CaseStatement, Expr, ExprTrait as _, LockType, OnConflict, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DatabaseConnection, DatabaseTransaction, DbBackend,
    DbErr, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};
use serde_json::Value;

use super::limits::{NAME, WORDS, text, time};
use super::{State, Subject};
use crate::erasure::{Person, Register};
use crate::event::WorkerName;
use crate::queue::{DeadKind, Death, Message, Removed, Replayed};
use crate::store::entity::{dead_letter as letter, dead_letter_change as change, dead_letter_failure as failure};
use crate::store::transaction;

/// The kind and the cause of what has not failed.
const PURGED: &str = "purged";
/// What is said of a message that says nothing itself.
const UNEXPLAINED: &str = "nothing says why: somebody else has put it among the dead";
/// What such a message is grouped by.
const OTHER: &str = "other";
/// How many rows one statement inserts: SQLite takes about 32,000 values.
pub(super) const ROWS_PER_STATEMENT: usize = 500;
/// How many rows one statement removes.
const PRUNED_AT_ONCE: u64 = 1_000;

/// A row that is there already.
#[derive(Debug, Clone)]
struct Known {
    id: i64,
    state: String,
    replays: i32,
}

/// Messages that died are in the database: each once, and each time that it died. One about a person who was erased is not.
///
/// # Errors
/// The database.
pub async fn record(tx: &DatabaseTransaction, dead: &[Removed]) -> Result<(), DbErr> {
    let mut dead = without_erased(tx, dead).await?;
    // In order and each failure once, since a statement may not have a row twice and two transactions must not cross.
    dead.sort_by(|one, other| (&one.message_id, one.death.at).cmp(&(&other.message_id, other.death.at)));
    dead.dedup_by(|one, other| (&one.message_id, one.death.at) == (&other.message_id, other.death.at));
    let before = known(tx, &dead).await?;
    let mut new: Vec<_> = dead.iter().filter(|died| died.row(&before).is_none()).collect();
    new.dedup_by(|one, other| one.message_id == other.message_id);
    insert(tx, new.iter().map(|died| died.letter(State::Dead)).collect()).await?;

    let after = if new.is_empty() { before.clone() } else { known(tx, &dead).await? };
    let told = failures(tx, after.values().map(|row| row.id)).await?;
    let mut rows = Vec::new();
    for died in &dead {
        let Some(row) = died.row(&after) else { continue };
        let was_there = died.row(&before).is_some();
        if told.contains(&(row.id, died.death.at)) || (died.is_unexplained && was_there) {
            continue;
        }
        rows.push(died.failure(row.id));
        let is_what_the_row_was_made_of = new.iter().any(|new| std::ptr::eq(*new, died));
        if !is_what_the_row_was_made_of {
            died.update(tx, row).await?;
        }
    }
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        failure::Entity::insert_many(rows.to_vec()).exec_without_returning(tx).await?;
    }
    Ok(())
}

/// Who has taken waiting messages out of the queue.
#[derive(Debug, Clone)]
pub struct Purge {
    /// What it is called: `replay_run` of its rows.
    pub run: String,
    /// A user of the operating system, or who they say they are.
    pub who: String,
    /// Why.
    pub reason: String,
}

/// Messages that waited are in the database as dropped, but for those about a person who was erased; how many dead letters those
/// are. Of one that was applied, or sent again
/// since, only a copy was taken out: it stays what it is.
///
/// # Errors
/// The database.
pub async fn purged(tx: &DatabaseTransaction, waiting: &[Removed], purge: &Purge) -> Result<u64, DbErr> {
    let mut waiting = without_erased(tx, waiting).await?;
    waiting.sort_by(|one, other| one.message_id.cmp(&other.message_id));
    waiting.dedup_by(|one, other| one.message_id == other.message_id);
    let before = known(tx, &waiting).await?;
    let new = waiting.iter().filter(|purged| purged.row(&before).is_none());
    insert(tx, new.map(|new| new.purged_letter(&purge.reason)).collect()).await?;
    let after = known(tx, &waiting).await?;
    let mut changes = Vec::new();
    let mut by_number = BTreeMap::<i32, Vec<i64>>::new();
    for purged in &waiting {
        let Some(row) = purged.row(&after) else { continue };
        let is_a_copy = row.state == State::Applied.as_str() || purged.replay() < row.replays;
        if !is_a_copy {
            by_number.entry(purged.replay()).or_default().push(row.id);
            changes.push(purged_change(row.id, purge));
        }
    }
    for (number, ids) in by_number {
        letter::Entity::update_many()
            .col_expr(letter::Column::State, Expr::value(State::Dropped.as_str()))
            .col_expr(letter::Column::Replays, at_least(number))
            .col_expr(letter::Column::ReplayRun, Expr::value(text(&purge.run, NAME)))
            .col_expr(letter::Column::UpdatedAt, Expr::value(Utc::now()))
            .filter(letter::Column::Id.is_in(ids))
            .exec(tx)
            .await?;
    }
    for changes in changes.chunks(ROWS_PER_STATEMENT) {
        change::Entity::insert_many(changes.to_vec()).exec_without_returning(tx).await?;
    }
    Ok(changes.len() as u64)
}

fn purged_change(dead_letter_id: i64, purge: &Purge) -> change::ActiveModel {
    change::ActiveModel {
        dead_letter_id: Set(dead_letter_id),
        changed_at: Set(Utc::now()),
        changed_by: Set(text(&purge.who, NAME)),
        change: Set(PURGED.into()),
        reason: Set(Some(text(&purge.reason, WORDS))),
        ..Default::default()
    }
}

/// Dead letters were applied after all, by the transaction that this is said in. Where a later replay is on its way, with an
/// edited body perhaps, that one decides.
///
/// # Errors
/// The database.
pub async fn applied(tx: &DatabaseTransaction, replays: &[Replayed]) -> Result<(), DbErr> {
    let mut by_number = BTreeMap::<i32, BTreeSet<String>>::new();
    for replay in replays {
        by_number.entry(replay.number).or_default().insert(replay.message_id.to_string());
    }
    if by_number.is_empty() {
        return Ok(());
    }
    lock(tx, replays.iter().map(|replay| replay.message_id.to_string())).await?;
    let now = Utc::now();
    for (number, ids) in by_number {
        letter::Entity::update_many()
            .col_expr(letter::Column::State, Expr::value(State::Applied.as_str()))
            .col_expr(letter::Column::Replays, Expr::value(number))
            .col_expr(letter::Column::AppliedAt, Expr::value(now))
            .col_expr(letter::Column::UpdatedAt, Expr::value(now))
            .filter(letter::Column::MessageId.is_in(ids))
            .filter(letter::Column::Replays.lte(number))
            .exec(tx)
            .await?;
    }
    Ok(())
}

/// Removes what has been in one of these states since before `until`, and nobody has touched since; how many it were.
///
/// # Errors
/// The database.
pub async fn prune(db: &DatabaseConnection, states: &[State], until: DateTime<Utc>) -> Result<u64, DbErr> {
    let is_old = || {
        letter::Column::State.is_in(states.iter().map(|state| state.as_str())).and(letter::Column::UpdatedAt.lt(until))
    };
    let mut pruned = 0;
    loop {
        let some = Query::select()
            .column(letter::Column::Id)
            .from(letter::Entity)
            .and_where(is_old())
            .limit(PRUNED_AT_ONCE)
            .to_owned();
        // Asked again of the row itself: while this waited for its lock, somebody may have restored it.
        let these = &letter::Entity::delete_many().filter(letter::Column::Id.in_subquery(some).and(is_old()));
        let removed =
            transaction(db, |tx| async move { Ok::<_, DbErr>(these.clone().exec(&*tx).await?.rows_affected) });
        let removed = removed.await?;
        pruned += removed;
        if removed < PRUNED_AT_ONCE {
            return Ok(pruned);
        }
    }
}

async fn without_erased<'a>(tx: &DatabaseTransaction, removed: &'a [Removed]) -> Result<Vec<Died<'a>>, DbErr> {
    let mut died: Vec<_> = removed.iter().map(Died::of).collect();
    let people = died.iter().filter_map(|died| died.person.as_ref().map(|(person, _)| person.clone()));
    let erased = Register::default().of(tx, people).await?;
    died.retain(|died| !died.person.as_ref().is_some_and(|(person, began_at)| erased.has(person, *began_at)));
    Ok(died)
}

/// `replays`, raised to `number`.
fn at_least(number: i32) -> Expr {
    let known = letter::Column::Replays;
    CaseStatement::new().case(known.lt(number), Expr::value(number)).finally(Expr::col(known)).into()
}

/// A message, and how it died.
struct Died<'a> {
    message_id: String,
    worker: WorkerName,
    message: &'a Message,
    death: Death,
    /// Nothing says how it died, nor when: what the queue gives twice cannot be told from two.
    is_unexplained: bool,
    headers: String,
    /// The person that it is about, and when what it tells of them began.
    person: Option<(Person, DateTime<Utc>)>,
}

impl<'a> Died<'a> {
    fn of(removed: &'a Removed) -> Self {
        let Removed { worker, message, death, headers } = removed;
        let subject = Subject::of(&message.source, &message.body, message.received_at).ok();
        let person =
            subject.and_then(|Subject { user_id, began_at, .. }| Some(((message.source.clone(), user_id?), began_at)));
        let unexplained = || Death {
            kind: DeadKind::Permanent,
            cause: OTHER.to_owned(),
            host: String::new(),
            at: message.received_at,
        };
        Self {
            message_id: message.id.to_string(),
            worker: *worker,
            message,
            is_unexplained: death.is_none(),
            death: death.clone().map_or_else(unexplained, |death| Death { at: time(death.at), ..death }),
            headers: Value::from(headers.clone()).to_string(),
            person,
        }
    }

    /// Its row, if it has one. A replay has the id of the message that died.
    fn row<'k>(&self, known: &'k AllKnown) -> Option<&'k Known> {
        known.get(&self.message_id)
    }

    fn replay(&self) -> i32 {
        self.message.replay.map_or(0, |replay| replay.number)
    }

    fn error(&self) -> String {
        text(self.message.last_error.as_deref().unwrap_or(UNEXPLAINED), WORDS)
    }

    fn host(&self) -> Option<String> {
        Some(text(&self.death.host, NAME)).filter(|host| !host.is_empty())
    }

    fn attempts(&self) -> i32 {
        self.message.attempt.try_into().unwrap_or(i32::MAX)
    }

    fn letter(&self, state: State) -> letter::ActiveModel {
        let Message { event, event_id, source, room_id, received_at, traceparent, first_failed_at, body, .. } =
            self.message;
        let now = Utc::now();
        letter::ActiveModel {
            message_id: Set(self.message_id.clone()),
            worker: Set(self.worker.as_str().into()),
            event: Set(text(event, NAME)),
            event_id: Set(event_id.as_deref().map(|id| text(id, WORDS))),
            source: Set(text(source, NAME)),
            room_id: Set(room_id.as_deref().map(|id| text(id, WORDS))),
            user_id: Set(self.person.as_ref().map(|((_, user_id), _)| user_id.clone())),
            traceparent: Set(traceparent.as_deref().map(|trace| text(trace, NAME))),
            received_at: Set(time(*received_at)),
            state: Set(state.as_str().into()),
            kind: Set(self.death.kind.as_str().into()),
            cause: Set(text(&self.death.cause, NAME)),
            error: Set(self.error()),
            attempts: Set(self.attempts()),
            host: Set(self.host()),
            first_failed_at: Set(first_failed_at.map_or(self.death.at, time)),
            last_failed_at: Set(self.death.at),
            replays: Set(self.replay()),
            created_at: Set(now),
            updated_at: Set(now),
            headers: Set(self.headers.clone()),
            body: Set(body.to_vec()),
            ..Default::default()
        }
    }

    /// As what waited and has not died; what went wrong so far is still to be read.
    fn purged_letter(&self, reason: &str) -> letter::ActiveModel {
        let now = Utc::now();
        let purged = format!("it waited, and was purged: {reason}");
        let error = match &self.message.last_error {
            Some(error) => format!("{error}; {purged}"),
            None => purged,
        };
        letter::ActiveModel {
            kind: Set(PURGED.into()),
            cause: Set(PURGED.into()),
            error: Set(text(&error, WORDS)),
            host: Set(None),
            first_failed_at: Set(self.message.first_failed_at.map_or(now, time)),
            last_failed_at: Set(now),
            ..self.letter(State::Dropped)
        }
    }

    fn failure(&self, dead_letter_id: i64) -> failure::ActiveModel {
        failure::ActiveModel {
            dead_letter_id: Set(dead_letter_id),
            failed_at: Set(self.death.at),
            replay: Set(self.replay()),
            kind: Set(self.death.kind.as_str().into()),
            cause: Set(text(&self.death.cause, NAME)),
            error: Set(self.error()),
            attempts: Set(self.attempts()),
            host: Set(self.host()),
        }
    }

    /// The row after this failure, which it did not know of. What somebody has dropped stays dropped, what was applied stays
    /// applied, and what is on its way once more stays so.
    async fn update(&self, tx: &DatabaseTransaction, row: &Known) -> Result<(), DbErr> {
        let number = self.replay();
        let died_again = row.state == State::Replaying.as_str();
        // A worker of an older version does not pass on which replay it had.
        let is_latest = number >= row.replays || (died_again && self.message.replay.is_none());
        if !is_latest {
            return Ok(());
        }
        let state = if died_again { State::Dead.as_str() } else { &row.state };
        let failed = letter::ActiveModel {
            state: Set(state.to_owned()),
            kind: Set(self.death.kind.as_str().into()),
            cause: Set(text(&self.death.cause, NAME)),
            error: Set(self.error()),
            attempts: Set(self.attempts()),
            host: Set(self.host()),
            last_failed_at: Set(self.death.at),
            replays: Set(Ord::max(number, row.replays)),
            updated_at: Set(Utc::now()),
            ..Default::default()
        };
        letter::Entity::update_many().set(failed).filter(letter::Column::Id.eq(row.id)).exec(tx).await.map(|_| ())
    }
}

/// The rows that are there already, by the message's id.
type AllKnown = BTreeMap<String, Known>;

/// The rows of these messages, locked.
async fn known(tx: &DatabaseTransaction, dead: &[Died<'_>]) -> Result<AllKnown, DbErr> {
    lock(tx, dead.iter().map(|died| died.message_id.clone())).await
}

/// In order of their ids, so that two transactions cannot wait for each other.
async fn lock(tx: &DatabaseTransaction, message_ids: impl Iterator<Item = String>) -> Result<AllKnown, DbErr> {
    let mut select = letter::Entity::find()
        .select_only()
        .columns([letter::Column::Id, letter::Column::MessageId, letter::Column::State, letter::Column::Replays])
        .filter(letter::Column::MessageId.is_in(message_ids))
        .order_by_asc(letter::Column::Id);
    if tx.get_database_backend() == DbBackend::Postgres {
        select = select.lock(LockType::NoKeyUpdate);
    }
    let rows: Vec<(i64, String, String, i32)> = select.into_tuple().all(tx).await?;
    Ok(rows.into_iter().map(|(id, message_id, state, replays)| (message_id, Known { id, state, replays })).collect())
}

async fn insert(tx: &DatabaseTransaction, rows: Vec<letter::ActiveModel>) -> Result<(), DbErr> {
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        // Another process may be at the same message: then this transaction waits for its commit.
        let unless_there = OnConflict::column(letter::Column::MessageId).do_nothing().to_owned();
        letter::Entity::insert_many(rows.to_vec()).on_conflict(unless_there).exec_without_returning(tx).await?;
    }
    Ok(())
}

/// The failures that these rows have.
async fn failures(
    tx: &DatabaseTransaction,
    ids: impl Iterator<Item = i64>,
) -> Result<BTreeSet<(i64, DateTime<Utc>)>, DbErr> {
    let found: Vec<(i64, DateTime<Utc>)> = failure::Entity::find()
        .select_only()
        .columns([failure::Column::DeadLetterId, failure::Column::FailedAt])
        .filter(failure::Column::DeadLetterId.is_in(ids))
        .into_tuple()
        .all(tx)
        .await?;
    Ok(found.into_iter().collect())
}
