//! `dead_letter_failure`: one time that a dead letter died.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// One time that a dead letter died.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "dead_letter_failure")]
pub struct Model {
    /// The dead letter.
    #[sea_orm(primary_key, auto_increment = false)]
    pub dead_letter_id: i64,
    /// When.
    #[sea_orm(primary_key, auto_increment = false)]
    pub failed_at: DateTime<Utc>,
    /// Which of its replays failed; 0, where it had none yet.
    pub replay: i32,
    /// `permanent`, `exhausted` or `poison`.
    pub kind: String,
    /// A short stable word for what similar failures share.
    pub cause: String,
    /// The whole chain.
    pub error: String,
    /// How often it had been tried.
    pub attempts: i32,
    /// Where.
    pub host: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
