//! What there is to see of dead letters. Nothing here reads a body but [`letter`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::{
    ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde::Serialize;

use super::Filter;
use crate::store::entity::dead_letter::{self, Column, Entity};
use crate::store::entity::{dead_letter_change as change, dead_letter_failure as failure};

/// Dead letters of one worker that died of the same, and of which the same became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Whose they are.
    pub worker: String,
    /// What they last died of.
    pub cause: String,
    /// What has become of them.
    pub state: String,
    /// How many there are.
    pub count: i64,
    /// When the first of them first died.
    pub first_failed_at: DateTime<Utc>,
    /// When the last of them last died.
    pub last_failed_at: DateTime<Utc>,
    /// `permanent`, `exhausted`, …
    pub kinds: Vec<String>,
    /// One of them: the one that came last.
    pub example: i64,
    /// Its error.
    pub error: String,
}

#[derive(FromQueryResult)]
struct PartOfGroup {
    worker: String,
    cause: String,
    state: String,
    kind: String,
    count: i64,
    first_failed_at: DateTime<Utc>,
    last_failed_at: DateTime<Utc>,
    example: i64,
}

/// Dead letters by worker, cause and state, the largest group first.
///
/// # Errors
/// The database.
pub async fn groups(db: &DatabaseConnection, filter: &Filter) -> Result<Vec<Group>, DbErr> {
    let key = [Column::State, Column::Worker, Column::Cause, Column::Kind];
    let parts = Entity::find()
        .select_only()
        .columns(key)
        .column_as(Column::Id.count(), "count")
        .column_as(Column::FirstFailedAt.min(), "first_failed_at")
        .column_as(Column::LastFailedAt.max(), "last_failed_at")
        .column_as(Column::Id.max(), "example")
        .filter(filter.condition());
    let parts = key.into_iter().fold(parts, |parts, column| parts.group_by(column));
    let mut groups = merged(parts.into_model().all(db).await?);
    let mut errors = errors(db, groups.iter().map(|group| group.example)).await?;
    for group in &mut groups {
        group.error = errors.remove(&group.example).unwrap_or_default();
    }
    Ok(groups)
}

/// Of each kind of failure there was a row.
fn merged(parts: Vec<PartOfGroup>) -> Vec<Group> {
    let mut groups: BTreeMap<_, Group> = BTreeMap::new();
    for part in parts {
        let key = (part.worker.clone(), part.cause.clone(), part.state.clone());
        let group = groups.entry(key).or_insert_with(|| Group {
            worker: part.worker,
            cause: part.cause,
            state: part.state,
            count: 0,
            first_failed_at: part.first_failed_at,
            last_failed_at: part.last_failed_at,
            kinds: Vec::new(),
            example: part.example,
            error: String::new(),
        });
        group.count += part.count;
        group.first_failed_at = group.first_failed_at.min(part.first_failed_at);
        group.last_failed_at = group.last_failed_at.max(part.last_failed_at);
        group.example = group.example.max(part.example);
        group.kinds.push(part.kind);
        group.kinds.sort_unstable();
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.count));
    groups
}

async fn errors(db: &DatabaseConnection, ids: impl Iterator<Item = i64>) -> Result<BTreeMap<i64, String>, DbErr> {
    let errors = Entity::find().select_only().columns([Column::Id, Column::Error]).filter(Column::Id.is_in(ids));
    Ok(errors.into_tuple().all(db).await?.into_iter().collect())
}

/// A dead letter in a list.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult, Serialize)]
pub struct Listed {
    /// The row's id.
    pub id: i64,
    /// Whose it is.
    pub worker: String,
    /// The event's name.
    pub event: String,
    /// The server's name in the settings.
    pub source: String,
    /// The room's own id.
    pub room_id: Option<String>,
    /// The person, where it is about one.
    pub user_id: Option<String>,
    /// What has become of it.
    pub state: String,
    /// Of the last failure: `permanent`, `exhausted`, …
    pub kind: String,
    /// Of the last failure: what similar failures share.
    pub cause: String,
    /// Of the last failure: the whole chain.
    pub error: String,
    /// How often it was tried, the last time that it was.
    pub attempts: i32,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// How often it was sent back.
    pub replays: i32,
}

/// Dead letters, the latest failure first; no more than `limit`.
///
/// # Errors
/// The database.
pub async fn list(db: &DatabaseConnection, filter: &Filter, limit: u64) -> Result<Vec<Listed>, DbErr> {
    let columns = [
        Column::Id,
        Column::Worker,
        Column::Event,
        Column::Source,
        Column::RoomId,
        Column::UserId,
        Column::State,
        Column::Kind,
        Column::Cause,
        Column::Error,
        Column::Attempts,
        Column::FirstFailedAt,
        Column::LastFailedAt,
        Column::Replays,
    ];
    Entity::find()
        .select_only()
        .columns(columns)
        .filter(filter.condition())
        .order_by_desc(Column::LastFailedAt)
        .order_by_desc(Column::Id)
        .limit(limit)
        .into_model()
        .all(db)
        .await
}

/// How many there are.
///
/// # Errors
/// The database.
pub async fn count(db: &DatabaseConnection, filter: &Filter) -> Result<u64, DbErr> {
    let count = Entity::find().select_only().expr(Column::Id.count()).filter(filter.condition());
    let count: Option<i64> = count.into_tuple().one(db).await?;
    Ok(count.unwrap_or_default().try_into().unwrap_or_default())
}

/// In which state each of them is, by id.
///
/// # Errors
/// The database.
pub async fn states(db: &DatabaseConnection, filter: &Filter) -> Result<BTreeMap<i64, String>, DbErr> {
    let states = Entity::find().select_only().columns([Column::Id, Column::State]).filter(filter.condition());
    Ok(states.into_tuple().all(db).await?.into_iter().collect())
}

/// How many dead letters something would be done to.
#[derive(Debug, Clone, PartialEq, Eq, FromQueryResult)]
pub struct Share {
    /// Whose they are.
    pub worker: String,
    /// The event's name.
    pub event: String,
    /// What they last died of.
    pub cause: String,
    /// How many.
    pub count: i64,
}

/// What they are, by worker, event and cause.
///
/// # Errors
/// The database.
pub async fn shares(db: &DatabaseConnection, filter: &Filter) -> Result<Vec<Share>, DbErr> {
    let key = [Column::Worker, Column::Event, Column::Cause];
    let shares = Entity::find()
        .select_only()
        .columns(key)
        .column_as(Column::Id.count(), "count")
        .filter(filter.condition())
        .order_by_desc(Column::Id.count());
    let shares = key.into_iter().fold(shares, |shares, column| shares.group_by(column).order_by_asc(column));
    shares.into_model().all(db).await
}

/// Everything about one dead letter.
#[derive(Debug, Clone, PartialEq)]
pub struct Letter {
    /// What it is.
    pub row: dead_letter::Model,
    /// Every time that it died, the first first.
    pub failures: Vec<failure::Model>,
    /// What somebody did with it, the first first.
    pub changes: Vec<change::Model>,
}

/// Everything about one dead letter; `None` where it is not there.
///
/// # Errors
/// The database.
pub async fn letter(db: &DatabaseConnection, id: i64) -> Result<Option<Letter>, DbErr> {
    Ok(letters(db, &[id]).await?.pop())
}

/// Everything about these dead letters, as far as they are there, in the order of their ids.
pub(super) async fn letters(db: &DatabaseConnection, ids: &[i64]) -> Result<Vec<Letter>, DbErr> {
    let ids = || ids.iter().copied();
    let rows = Entity::find().filter(Column::Id.is_in(ids())).order_by_asc(Column::Id).all(db).await?;
    let failures = failure::Entity::find()
        .filter(failure::Column::DeadLetterId.is_in(ids()))
        .order_by_asc(failure::Column::FailedAt)
        .all(db)
        .await?;
    let changes = change::Entity::find()
        .filter(change::Column::DeadLetterId.is_in(ids()))
        .order_by_asc(change::Column::Id)
        .all(db)
        .await?;
    let mut letters: BTreeMap<_, _> =
        rows.into_iter().map(|row| (row.id, Letter { row, failures: Vec::new(), changes: Vec::new() })).collect();
    for failure in failures {
        if let Some(letter) = letters.get_mut(&failure.dead_letter_id) {
            letter.failures.push(failure);
        }
    }
    for change in changes {
        if let Some(letter) = letters.get_mut(&change.dead_letter_id) {
            letter.changes.push(change);
        }
    }
    Ok(letters.into_values().collect())
}
