//! `live_session_start`: every time the media server opened a session's room.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// Every time the media server opened a session's room.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "live_session_start")]
pub struct Model {
    /// The session.
    #[sea_orm(primary_key, auto_increment = false)]
    pub session_id: i64,
    /// When.
    #[sea_orm(primary_key, auto_increment = false)]
    pub started_at: DateTime<Utc>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
