//! `dead_letter`: a message that died: why, and what became of it.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// A message that died: why, and what became of it.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "dead_letter")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The message's id, which is ours.
    pub message_id: String,
    /// Whose it was.
    pub worker: String,
    /// The event's name.
    pub event: String,
    /// The server's id of the event.
    pub event_id: Option<String>,
    /// The server's name in the settings.
    pub source: String,
    /// The room's own id.
    pub room_id: Option<String>,
    /// The person, where it is about one.
    pub user_id: Option<String>,
    /// The W3C trace context of the request that brought it.
    pub traceparent: Option<String>,
    /// When the ingress took it in.
    pub received_at: DateTime<Utc>,
    /// `dead`, `replaying`, `applied` or `dropped`.
    pub state: String,
    /// Of the last failure: `permanent`, `exhausted` or `poison`; `purged`, where it has not failed.
    pub kind: String,
    /// Of the last failure: a short stable word for what similar failures share.
    pub cause: String,
    /// Of the last failure: the whole chain.
    pub error: String,
    /// How often it was tried, the last time that it was.
    pub attempts: i32,
    /// Where it last failed.
    pub host: Option<String>,
    /// When it first failed.
    pub first_failed_at: DateTime<Utc>,
    /// When it last failed.
    pub last_failed_at: DateTime<Utc>,
    /// How often it was sent back to its worker.
    pub replays: i32,
    /// When it was, last.
    pub replayed_at: Option<DateTime<Utc>>,
    /// Who did that.
    pub replayed_by: Option<String>,
    /// With what else: one run of `rollcall dlq replay`.
    pub replay_run: Option<String>,
    /// When it was applied after all.
    pub applied_at: Option<DateTime<Utc>>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When the row was last changed.
    pub updated_at: DateTime<Utc>,
    /// The headers that the message had, as a JSON object.
    pub headers: String,
    /// The body: what is replayed.
    pub body: Vec<u8>,
    /// The body as the server sent it, where somebody has edited it since.
    pub original_body: Option<Vec<u8>>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
