//! Which workers run, which shall rest, and what there is to see to: what operators and workers tell each other, by the database.

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::sea_query::{Expr, ExprTrait as _, OnConflict};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, DatabaseConnection, DbErr, EntityTrait as _,
    IntoActiveModel as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use crate::dead_letters::State;
use crate::event::AnyWorker;
use crate::store::entity::{
    dead_letter as letter, live_session_recording as recording, recording_lease as lease, worker_pause as pause,
    worker_process as process,
};

/// After how long a process is forgotten that does not tell any more.
const FORGOTTEN: TimeDelta = TimeDelta::days(7);

/// A worker tells that it runs, and how it is doing.
///
/// # Errors
/// The database.
pub async fn tell(db: &DatabaseConnection, row: process::Model) -> Result<(), DbErr> {
    let told = [
        process::Column::State,
        process::Column::SeenAt,
        process::Column::InFlight,
        process::Column::Settled,
        process::Column::Rate,
        process::Column::OldestReceivedAt,
    ];
    let again = OnConflict::column(process::Column::Id).update_columns(told).to_owned();
    let row = row.into_active_model().reset_all();
    process::Entity::insert(row).on_conflict(again).exec_without_returning(db).await.map(|_| ())
}

/// A worker has ended.
///
/// # Errors
/// The database.
pub async fn forget(db: &DatabaseConnection, id: &str) -> Result<(), DbErr> {
    process::Entity::delete_by_id(id).exec(db).await.map(|_| ())
}

/// Forgets those that have not told for long: they were killed.
///
/// # Errors
/// The database.
pub async fn forget_the_old(db: &DatabaseConnection) -> Result<(), DbErr> {
    let old = process::Column::SeenAt.lt(Utc::now() - FORGOTTEN);
    process::Entity::delete_many().filter(old).exec(db).await.map(|_| ())
}

/// Every worker that has told of late, and some that were killed.
///
/// # Errors
/// The database.
pub async fn processes(db: &DatabaseConnection) -> Result<Vec<process::Model>, DbErr> {
    process::Entity::find().order_by_asc(process::Column::Worker).order_by_asc(process::Column::Id).all(db).await
}

/// Who has paused a worker, and why, if somebody has.
///
/// # Errors
/// The database.
pub async fn pause_of(db: &DatabaseConnection, worker: AnyWorker) -> Result<Option<pause::Model>, DbErr> {
    pause::Entity::find_by_id(worker.as_str()).one(db).await
}

/// Every pause.
///
/// # Errors
/// The database.
pub async fn pauses(db: &DatabaseConnection) -> Result<Vec<pause::Model>, DbErr> {
    pause::Entity::find().all(db).await
}

/// From now on, the worker shall rest: `false` if it was to already, and whoever said so first is who has.
///
/// # Errors
/// The database.
pub async fn pause(
    db: &DatabaseConnection,
    worker: AnyWorker,
    who: &str,
    reason: Option<String>,
) -> Result<bool, DbErr> {
    let row = pause::ActiveModel {
        worker: Set(worker.as_str().to_owned()),
        paused_at: Set(Utc::now()),
        paused_by: Set(who.to_owned()),
        reason: Set(reason),
    };
    let unless_paused = OnConflict::column(pause::Column::Worker).do_nothing().to_owned();
    Ok(pause::Entity::insert(row).on_conflict(unless_paused).exec_without_returning(db).await? > 0)
}

/// From now on, the worker shall work: `false` if it did.
///
/// # Errors
/// The database.
pub async fn resume(db: &DatabaseConnection, worker: AnyWorker) -> Result<bool, DbErr> {
    Ok(pause::Entity::delete_by_id(worker.as_str()).exec(db).await?.rows_affected > 0)
}

/// How many dead letters of a worker wait for somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unresolved {
    /// Whose.
    pub worker: String,
    /// In which state: dead, or replaying.
    pub state: String,
    /// How many.
    pub count: i64,
}

/// What of each worker waits among the dead letters.
///
/// # Errors
/// The database.
pub async fn unresolved(db: &DatabaseConnection) -> Result<Vec<Unresolved>, DbErr> {
    let rows: Vec<(String, String, i64)> = letter::Entity::find()
        .select_only()
        .columns([letter::Column::Worker, letter::Column::State])
        .column_as(Expr::col(letter::Column::Id).count(), "count")
        .filter(letter::Column::State.is_in([State::Dead, State::Replaying].map(State::as_str)))
        .group_by(letter::Column::Worker)
        .group_by(letter::Column::State)
        .into_tuple()
        .all(db)
        .await?;
    Ok(rows.into_iter().map(|(worker, state, count)| Unresolved { worker, state, count }).collect())
}

/// How many of the dead letters that are dead now have died since then.
///
/// # Errors
/// The database.
pub async fn died_since(db: &DatabaseConnection, since: DateTime<Utc>) -> Result<u64, DbErr> {
    letter::Entity::find()
        .filter(letter::Column::State.eq(State::Dead.as_str()))
        .filter(letter::Column::LastFailedAt.gte(since))
        .count(db)
        .await
}

/// A recording that is being fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct InProgress {
    /// The recording.
    pub recording: recording::Model,
    /// Until when somebody has it, unless they renew that.
    pub leased_until: DateTime<Utc>,
}

/// The recordings that somebody fetches now.
///
/// # Errors
/// The database.
pub async fn recordings_in_progress(db: &DatabaseConnection) -> Result<Vec<InProgress>, DbErr> {
    let leases = lease::Entity::find().filter(lease::Column::Failure.is_null()).all(db).await?;
    let ids = leases.iter().map(|lease| lease.recording_id);
    let recordings = recording::Entity::find()
        .filter(recording::Column::Id.is_in(ids))
        .order_by_asc(recording::Column::Id)
        .all(db)
        .await?;
    let until = |recording: &recording::Model| leases.iter().find(|lease| lease.recording_id == recording.id);
    let in_progress = |recording: recording::Model| {
        let leased_until = until(&recording)?.expires_at;
        Some(InProgress { recording, leased_until })
    };
    Ok(recordings.into_iter().filter_map(in_progress).collect())
}

/// How many recordings wait: for the server to be done with them, or for their next try.
///
/// # Errors
/// The database.
pub async fn recordings_waiting(db: &DatabaseConnection) -> Result<u64, DbErr> {
    recording::Entity::find().filter(recording::Column::Status.eq("processing")).count(db).await
}
