//! `live_session_recording`: a recording and where it is archived.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A recording and where it is archived.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "live_session_recording")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The session that was recorded.
    pub session_id: i64,
    /// The server's name in the settings.
    pub source: String,
    /// The server's id of the recording.
    pub record_id: String,
    /// The recording's title.
    pub title: Option<String>,
    /// `video` or `voice`, by the file's content.
    pub recording_type: Option<String>,
    /// `processing`, `ready` or `failed`.
    pub status: String,
    /// Where the file lies in the storage.
    pub file_key: Option<String>,
    /// What to call the file for people; never a path.
    pub file_name: Option<String>,
    /// In bytes.
    pub file_size: Option<i64>,
    /// Of the file, in lower-case hex.
    pub sha256: Option<String>,
    /// How long it plays.
    pub duration_seconds: Option<f64>,
    /// In pixels.
    pub width: Option<i32>,
    /// In pixels.
    pub height: Option<i32>,
    /// Such as `h264`.
    pub video_codec: Option<String>,
    /// Where the thumbnail lies in the storage.
    pub thumbnail_key: Option<String>,
    /// When the server made it.
    pub recorded_at: Option<DateTime<Utc>>,
    /// What went wrong last.
    pub error: Option<String>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When the row was last changed.
    pub updated_at: DateTime<Utc>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
