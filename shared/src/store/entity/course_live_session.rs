//! `course_live_session`: a room from its opening to its end.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A room from its opening to its end.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "course_live_session")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The server's name in the settings.
    pub source: String,
    /// The room's own id.
    pub room_id: String,
    /// The server's id of this session; null until its first event, where the LMS made the row ahead.
    pub room_sid: Option<String>,
    /// The class that this breakout room belongs to.
    pub parent_room_id: Option<String>,
    /// The course.
    pub course_id: Option<i64>,
    /// What the session is called.
    pub subject: Option<String>,
    /// Ours: when the subject was said; null beside a subject of the LMS's own.
    pub subject_at: Option<DateTime<Utc>>,
    /// The earliest start, or join.
    pub started_at: Option<DateTime<Utc>>,
    /// The later of the two events that end a session.
    pub ended_at: Option<DateTime<Utc>>,
    /// When the row was made.
    pub created_at: Option<DateTime<Utc>>,
    /// When the row was last changed.
    pub updated_at: Option<DateTime<Utc>>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
