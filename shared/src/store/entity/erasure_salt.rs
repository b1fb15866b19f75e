//! `erasure_salt`: ours: what the hashes of erased people are made with; one row.

use sea_orm::entity::prelude::*;

/// Ours: what the hashes of erased people are made with; one row.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "erasure_salt")]
pub struct Model {
    /// Random, made by the migration.
    #[sea_orm(primary_key, auto_increment = false)]
    pub salt: String,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
