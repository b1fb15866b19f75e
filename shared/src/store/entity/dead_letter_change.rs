//! `dead_letter_change`: what somebody did with a dead letter.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// What somebody did with a dead letter.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "dead_letter_change")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The dead letter.
    pub dead_letter_id: i64,
    /// When.
    pub changed_at: DateTime<Utc>,
    /// Who: a user of the operating system, or who they said they are.
    pub changed_by: String,
    /// What, in a word: `replayed`, `edited`, `dropped`, `restored`, `noted`, `imported`, `purged`.
    pub change: String,
    /// Why, or what exactly.
    pub reason: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
