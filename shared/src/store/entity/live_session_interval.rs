//! `live_session_interval`: one connection of one person.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// One connection of one person.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "live_session_interval")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The session.
    pub session_id: i64,
    /// The person.
    pub user_id: String,
    /// The connection's own id.
    pub participant_sid: String,
    /// When it began; null where only a leave without it has come.
    pub joined_at: Option<DateTime<Utc>>,
    /// Ours: the same in Unix milliseconds, for ordering.
    pub joined_at_ms: Option<i64>,
    /// When its leave said that it ended.
    pub left_at: Option<DateTime<Utc>>,
    /// Why, in the media server's words.
    pub disconnect_reason: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
