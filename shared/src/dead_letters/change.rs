//! What operators do with dead letters where they are: each change is recorded with who did it, when, and why.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, LockType, Query};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait as _, DatabaseConnection,
    DatabaseTransaction, DbBackend, DbErr, EntityTrait as _, IntoActiveModel as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};

use super::limits::{BadValue, check_body};
use super::subject::without_nul;
use super::walk::{PAGE_ROWS, Walk};
use super::{Filter, State, Subject};
use crate::event::WorkerName;
use crate::plugnmeet::webhook::ParseError;
use crate::store::entity::dead_letter::{self, Column, Entity};
use crate::store::entity::dead_letter_change as change;
use crate::store::{Failed, transaction};

/// Who does something, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct By {
    /// A user of the operating system, or who they say they are.
    pub name: String,
    /// Why.
    pub reason: Option<String>,
}

impl By {
    /// The same person, whose reason is followed by what exactly it was.
    fn exactly(&self, what: &str) -> Self {
        let reason = match &self.reason {
            Some(reason) => format!("{reason} ({what})"),
            None => what.to_owned(),
        };
        Self { name: self.name.clone(), reason: Some(without_nul(&reason)) }
    }
}

/// Nothing more shall become of those of `filter` that are dead, or that have not come back from their worker. `told` is told
/// how many more it were, again and again. How many it were in all.
///
/// # Errors
/// The database. Some may be dropped then.
pub async fn drop_all(db: &DatabaseConnection, filter: &Filter, by: &By, told: impl Fn(u64)) -> Result<u64, DbErr> {
    set_state(db, filter, &[State::Dead, State::Replaying], State::Dropped, "dropped", by, told).await
}

/// Those of `filter` that were dropped are dead again, as for [`drop_all`].
///
/// # Errors
/// As [`drop_all`].
pub async fn restore_all(db: &DatabaseConnection, filter: &Filter, by: &By, told: impl Fn(u64)) -> Result<u64, DbErr> {
    set_state(db, filter, &[State::Dropped], State::Dead, "restored", by, told).await
}

async fn set_state(
    db: &DatabaseConnection,
    filter: &Filter,
    from: &[State],
    to: State,
    word: &str,
    by: &By,
    told: impl Fn(u64),
) -> Result<u64, DbErr> {
    let mut walk = Walk::new(db, filter, PAGE_ROWS).await?;
    let from = || Column::State.is_in(from.iter().map(|state| state.as_str()));
    let mut count = 0;
    loop {
        let page = walk.next(db).await?;
        if page.is_empty() {
            return Ok(count);
        }
        let (page, from) = (&page, &from);
        let changed = transaction(db, |tx| async move {
            lock(&tx, page).await?;
            let these = Condition::all().add(Column::Id.is_in(page.iter().copied())).add(from());
            let now = Utc::now();
            record(&tx, these.clone(), word, by, now).await?;
            let update = Entity::update_many()
                .col_expr(Column::State, Expr::value(to.as_str()))
                .col_expr(Column::UpdatedAt, Expr::value(now))
                .filter(these);
            Ok::<_, DbErr>(update.exec(&*tx).await?.rows_affected)
        })
        .await?;
        count += changed;
        told(changed);
    }
}

/// Writes something down about one. `false` where it is not there.
///
/// # Errors
/// The database.
pub async fn note(db: &DatabaseConnection, id: i64, by: &By) -> Result<bool, DbErr> {
    transaction(db, |tx| async move { Ok(record(&tx, one(id), "noted", by, Utc::now()).await? > 0) }).await
}

/// What an edit has made of a dead letter.
#[derive(Debug)]
pub struct Edited {
    /// Whose it is now.
    pub worker: WorkerName,
    /// The event's name now.
    pub event: String,
    /// Why its worker will not understand the body.
    pub problem: Option<ParseError>,
}

/// Why a dead letter was not edited: nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DbErr),
    /// There is none.
    #[error("there is no dead letter {0}")]
    Missing(i64),
    /// It is on its way, or has arrived.
    #[error("dead letter {0} is {1}: only one that is dead or dropped can be edited")]
    State(i64, String),
    /// Somebody was quicker.
    #[error("somebody else has edited dead letter {0} meanwhile: look at it again")]
    Changed(i64),
    /// It was never edited.
    #[error("dead letter {0} is as it came: there is nothing to revert")]
    Original(i64),
    /// No worker is there for it.
    #[error("the body has no event: {0}")]
    NoEvent(serde_json::Error),
    /// It is longer than the ingress takes one.
    #[error("the edited body cannot be: {0}")]
    Value(#[from] BadValue),
    /// No worker wants it.
    #[error("no worker wants an event {0:?}: it is one of {1}")]
    Unwanted(String, String),
}

impl Failed for EditError {
    fn database_error(&self) -> Option<&DbErr> {
        match self {
            Self::Database(error) => Some(error),
            _ => None,
        }
    }
}

/// Changes the body `from` of a dead letter to `to`, which has `max_body` bytes at most, as the ingress takes none that is
/// longer; what it is found by, and whose it is, follow. `what` says what exactly was changed.
///
/// # Errors
/// See [`EditError`].
pub async fn edit(
    db: &DatabaseConnection,
    id: i64,
    (from, to): (&[u8], &[u8]),
    max_body: usize,
    what: &str,
    by: &By,
) -> Result<Edited, EditError> {
    check_body("body", to.len(), max_body)?;
    let by = &by.exactly(what);
    set_body(db, id, "edited", by, |row| {
        if row.body != from {
            return Err(EditError::Changed(id));
        }
        let original = row.original_body.clone().unwrap_or_else(|| row.body.clone());
        Ok((to.to_vec(), Some(original)))
    })
    .await
}

/// The dead letter has its original body again.
///
/// # Errors
/// See [`EditError`].
pub async fn revert(db: &DatabaseConnection, id: i64, by: &By) -> Result<Edited, EditError> {
    let by = &by.exactly("the original body again");
    set_body(db, id, "edited", by, |row| {
        let original = row.original_body.clone().ok_or(EditError::Original(id))?;
        Ok((original, None))
    })
    .await
}

/// A body, and the original of one that was edited.
type Bodies = (Vec<u8>, Option<Vec<u8>>);

async fn set_body(
    db: &DatabaseConnection,
    id: i64,
    word: &str,
    by: &By,
    bodies: impl Fn(&dead_letter::Model) -> Result<Bodies, EditError>,
) -> Result<Edited, EditError> {
    let bodies = &bodies;
    transaction(db, |tx| async move {
        lock(&tx, &[id]).await?;
        let row = Entity::find_by_id(id).one(&*tx).await?.ok_or(EditError::Missing(id))?;
        if ![State::Dead, State::Dropped].map(State::as_str).contains(&row.state.as_str()) {
            return Err(EditError::State(id, row.state));
        }
        let (body, original_body) = bodies(&row)?;
        let subject = Subject::of(&row.source, &body, row.received_at).map_err(EditError::NoEvent)?;
        let worker = WorkerName::wanting(&subject.event).ok_or_else(|| unwanted(&subject.event))?;
        let edited = Edited { worker, event: subject.event.clone(), problem: subject.problem };
        let now = Utc::now();
        let mut row = row.into_active_model();
        row.worker = Set(worker.as_str().to_owned());
        row.event = Set(subject.event);
        row.event_id = Set(subject.event_id);
        row.room_id = Set(subject.room_id);
        row.user_id = Set(subject.user_id);
        row.updated_at = Set(now);
        row.body = Set(body);
        row.original_body = Set(original_body);
        row.update(&*tx).await?;
        record(&tx, one(id), word, by, now).await?;
        Ok(edited)
    })
    .await
}

fn unwanted(event: &str) -> EditError {
    let wanted: Vec<_> = WorkerName::ALL.iter().flat_map(|worker| worker.wants()).copied().collect();
    EditError::Unwanted(event.to_owned(), wanted.join(", "))
}

/// Locks rows in the order of their ids, so that two who change many cannot wait for each other. In an SQLite database only
/// one can write anyway.
pub(super) async fn lock(tx: &DatabaseTransaction, ids: &[i64]) -> Result<(), DbErr> {
    if tx.get_database_backend() == DbBackend::Postgres {
        let rows = Entity::find().select_only().column(Column::Id).filter(Column::Id.is_in(ids.iter().copied()));
        rows.order_by_asc(Column::Id).lock(LockType::NoKeyUpdate).into_tuple::<i64>().all(tx).await?;
    }
    Ok(())
}

/// Records what somebody does with those dead letters that are there; how many they are.
pub(super) async fn record(
    tx: &DatabaseTransaction,
    these: Condition,
    word: &str,
    by: &By,
    at: DateTime<Utc>,
) -> Result<u64, DbErr> {
    use change::Column::{Change, ChangedAt, ChangedBy, DeadLetterId, Reason};
    let reason = by.reason.as_deref().map(without_nul);
    let letters = Query::select()
        .column(Column::Id)
        .exprs([Expr::val(at), Expr::val(without_nul(&by.name)), Expr::val(word), Expr::val(reason)])
        .from(Entity)
        .cond_where(these)
        .order_by(Column::Id, sea_orm::Order::Asc)
        .take();
    let mut insert = Query::insert();
    insert.into_table(change::Entity).columns([DeadLetterId, ChangedAt, ChangedBy, Change, Reason]);
    insert.select_from(letters).map_err(|error| DbErr::Custom(error.to_string()))?;
    Ok(tx.execute(&insert).await?.rows_affected())
}

fn one(id: i64) -> Condition {
    Condition::all().add(Column::Id.eq(id))
}
