//! `worker_pause`: a worker that shall rest.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A worker that shall rest.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "worker_pause")]
pub struct Model {
    /// The worker.
    #[sea_orm(primary_key, auto_increment = false)]
    pub worker: String,
    /// Since when.
    pub paused_at: DateTime<Utc>,
    /// Who says so.
    pub paused_by: String,
    /// Why.
    pub reason: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
