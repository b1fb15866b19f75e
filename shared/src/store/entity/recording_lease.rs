//! `recording_lease`: ours: who fetches a recording now.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// Ours: who fetches a recording now.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "recording_lease")]
pub struct Model {
    /// The recording.
    #[sea_orm(primary_key, auto_increment = false)]
    pub recording_id: i64,
    /// The job that has it.
    pub holder: String,
    /// When the job is taken for dead unless it renews.
    pub expires_at: DateTime<Utc>,
    /// For how long it has the recording then.
    pub length_seconds: f64,
    /// How many holders, one after the other, were taken for dead.
    pub deaths: i32,
    /// How a job ended that outlived its delivery: whoever looks after it next takes this for its own failure.
    pub failure: Option<String>,
    /// Whether trying again is pointless.
    pub failure_is_permanent: bool,
    /// What dead letters of that failure are grouped by.
    pub failure_cause: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
