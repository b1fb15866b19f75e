//! `erased_person`: ours: a person whom events until then bring back no more.

use chrono::{DateTime, Utc};
use sea_orm::entity::prelude::*;

/// Ours: a person whom events until then bring back no more.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "erased_person")]
pub struct Model {
    /// Of the server's name and the person's id, with the salt, in hex.
    #[sea_orm(primary_key, auto_increment = false)]
    pub hash: String,
    /// When.
    pub erased_at: DateTime<Utc>,
    /// Who did it: a user of the operating system, or who they said they are.
    pub erased_by: String,
    /// Why.
    pub reason: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
