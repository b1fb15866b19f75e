//! `live_session_user`: one person's attendance of one session, derived from the intervals.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// One person's attendance of one session, derived from the intervals.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "live_session_user")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The session.
    pub session_id: i64,
    /// The LMS's id of the person, or `sip_<number>` for a caller on a phone.
    pub user_id: String,
    /// The name last used.
    pub name: Option<String>,
    /// Ours: when the name was said.
    pub name_at: Option<DateTime<Utc>>,
    /// Ours: whether an event or record of the server said that the person moderates.
    pub said_admin: bool,
    /// `moderator` or `participant`.
    pub role: String,
    /// The first join.
    pub entered_at: Option<DateTime<Utc>>,
    /// The last end; null while online.
    pub exited_at: Option<DateTime<Utc>>,
    /// Whether the person is in the room now.
    pub is_online: bool,
    /// The union of the ended intervals, in whole seconds.
    pub total_seconds: i64,
    /// How often the person joined.
    pub join_count: i32,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When the row was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
