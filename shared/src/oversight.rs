//! Which workers run, which shall rest, and what there is to see to: what operators and workers tell each other, by the database.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{Expr, ExprTrait as _, OnConflict, Query};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DatabaseConnection, DbErr, EntityTrait as _,
    FromQueryResult, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use crate::dead_letters::State;
use crate::event::AnyWorker;
use crate::store::entity::{
    dead_letter as letter, live_session_recording as recording, recording_lease as lease, worker_pause as pause,
    worker_process as process,
};
use crate::store::{Clock, transaction};

/// The state of a process that takes what comes.
pub const TAKING: &str = "taking";
/// The state of a process that rests, because somebody has paused its worker.
pub const PAUSED: &str = "paused";

/// How long a process may be silent before it is taken for dead: it reports every ten seconds.
const SILENCE: Duration = Duration::from_secs(30);
/// After how long a process is forgotten that does not report any more.
const FORGOTTEN: Duration = Duration::from_hours(7 * 24);

/// What a worker's process reports of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    /// The process's own, new each time that it starts.
    pub id: String,
    /// Which worker it is of.
    pub worker: AnyWorker,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// Rollcall's version.
    pub version: &'static str,
    /// [`TAKING`], [`PAUSED`], or what keeps it from its work.
    pub state: String,
    /// How many deliveries it has.
    pub in_flight: u64,
    /// How many it has settled since it started.
    pub settled: u64,
    /// How many it settles a second, of late.
    pub rate: f64,
    /// When the oldest event that it has was taken in.
    pub oldest_received_at: Option<DateTime<Utc>>,
}

/// A worker's process reports. When that is, and when it did so first, the database says: the machines' clocks may differ.
///
/// # Errors
/// The database.
pub async fn report(db: &DatabaseConnection, heartbeat: Heartbeat) -> Result<(), DbErr> {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let now = || Expr::cust(Clock::of(db).now());
    let Heartbeat { id, worker, host, pid, version, state, in_flight, settled, rate, oldest_received_at } = heartbeat;
    let once = [
        (process::Column::Id, Expr::value(id)),
        (process::Column::Worker, Expr::value(worker.as_str())),
        (process::Column::Host, Expr::value(host)),
        (process::Column::Pid, Expr::value(i64::from(pid))),
        (process::Column::Version, Expr::value(version)),
        (process::Column::StartedAt, now()),
    ];
    let each_time = [
        (process::Column::State, Expr::value(state)),
        (process::Column::SeenAt, now()),
        (process::Column::InFlight, Expr::value(number(in_flight))),
        (process::Column::Settled, Expr::value(number(settled))),
        (process::Column::Rate, Expr::value(rate)),
        (process::Column::OldestReceivedAt, Expr::value(oldest_received_at)),
    ];
    let again =
        OnConflict::column(process::Column::Id).update_columns(each_time.iter().map(|(column, _)| *column)).to_owned();
    let (columns, values): (Vec<_>, Vec<_>) = once.into_iter().chain(each_time).unzip();
    let row =
        Query::insert().into_table(process::Entity).columns(columns).values_panic(values).on_conflict(again).to_owned();
    db.execute(&row).await.map(|_| ())
}

/// A worker has ended.
///
/// # Errors
/// The database.
pub async fn forget(db: &DatabaseConnection, id: &str) -> Result<(), DbErr> {
    process::Entity::delete_by_id(id).exec(db).await.map(|_| ())
}

/// Forgets those that have not reported for long: they were killed.
///
/// # Errors
/// The database.
pub async fn forget_the_old(db: &DatabaseConnection) -> Result<(), DbErr> {
    let silent_seconds = Expr::cust(format!("abs{}", Clock::of(db).seconds_since("seen_at")));
    let old = silent_seconds.gt(FORGOTTEN.as_secs_f64());
    process::Entity::delete_many().filter(old).exec(db).await.map(|_| ())
}

/// A worker's process, as it last reported.
#[derive(Debug, Clone, PartialEq, FromQueryResult)]
pub struct Process {
    /// Which worker it is of.
    pub worker: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: i64,
    /// Rollcall's version.
    pub version: String,
    /// [`TAKING`], [`PAUSED`], or what keeps it from its work.
    pub state: String,
    /// How many deliveries it has.
    pub in_flight: i64,
    /// How many it has settled since it started.
    pub settled: i64,
    /// How many it settles a second, of late.
    pub rate: f64,
    /// When the oldest event that it has was taken in.
    pub oldest_received_at: Option<DateTime<Utc>>,
    /// For how many seconds it has run, by the database's clock.
    pub running_seconds: f64,
    /// How many seconds ago it last reported, by the database's clock; less than none, if that has been set back since.
    pub silent_seconds: f64,
}

impl Process {
    /// Whether it has reported of late: what was seen at a time that is yet to come was seen before the clock was set back.
    pub fn is_alive(&self) -> bool {
        self.silent_seconds.abs() < SILENCE.as_secs_f64()
    }
}

/// Every process that has reported of late, and some that were killed.
///
/// # Errors
/// The database.
pub async fn processes(db: &DatabaseConnection) -> Result<Vec<Process>, DbErr> {
    let clock = Clock::of(db);
    process::Entity::find()
        .expr_as(Expr::cust(clock.seconds_since("started_at")), "running_seconds")
        .expr_as(Expr::cust(clock.seconds_since("seen_at")), "silent_seconds")
        .order_by_asc(process::Column::Worker)
        .order_by_asc(process::Column::Id)
        .into_model()
        .all(db)
        .await
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
    let insert = &|| pause::Entity::insert(row.clone()).on_conflict(unless_paused.clone());
    transaction(db, |tx| async move { Ok(insert().exec_without_returning(&*tx).await? > 0) }).await
}

/// From now on, the worker shall work: the pause that this ended, if there was one.
///
/// # Errors
/// The database.
pub async fn resume(db: &DatabaseConnection, worker: AnyWorker) -> Result<Option<pause::Model>, DbErr> {
    transaction(db, |tx| async move {
        let paused = pause::Entity::find_by_id(worker.as_str()).one(&*tx).await?;
        let ended = pause::Entity::delete_by_id(worker.as_str()).exec(&*tx).await?.rows_affected > 0;
        Ok(paused.filter(|_| ended))
    })
    .await
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

/// The recordings that somebody fetches now.
///
/// # Errors
/// The database.
pub async fn recordings_in_progress(db: &DatabaseConnection) -> Result<Vec<recording::Model>, DbErr> {
    let in_hand = Query::select()
        .column(lease::Column::RecordingId)
        .from(lease::Entity)
        .and_where(lease::Column::Failure.is_null())
        // One that was killed does not renew.
        .and_where(Expr::cust(Clock::of(db).is_over("expires_at", "length_seconds")).not())
        .to_owned();
    recording::Entity::find()
        .filter(recording::Column::Id.in_subquery(in_hand))
        .filter(recording::Column::Status.eq("processing"))
        .order_by_asc(recording::Column::Id)
        .all(db)
        .await
}

/// How many recordings wait: for the server to be done with them, or for their next try.
///
/// # Errors
/// The database.
pub async fn recordings_waiting(db: &DatabaseConnection) -> Result<u64, DbErr> {
    recording::Entity::find().filter(recording::Column::Status.eq("processing")).count(db).await
}
