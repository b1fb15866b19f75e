//! `worker_process`: a worker that runs, as it last told.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A worker that runs, as it last told.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "worker_process")]
pub struct Model {
    /// Its own, new each time that it starts.
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    /// Which worker it is.
    pub worker: String,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: i64,
    /// Rollcall's version.
    pub version: String,
    /// `taking`, `paused`, or what keeps it from its work.
    pub state: String,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it last told.
    pub seen_at: DateTime<Utc>,
    /// How many deliveries it has.
    pub in_flight: i64,
    /// How many it has settled since it started.
    pub settled: i64,
    /// How many it settles a second, of late.
    pub rate: f64,
    /// When the oldest event that it has was taken in.
    pub oldest_received_at: Option<DateTime<Utc>>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
