//! `course`: a course. Filled by the LMS.

use sea_orm::entity::prelude::*;

/// A course. Filled by the LMS.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "course")]
pub struct Model {
    /// The row's id.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// The LMS's short name of the course.
    pub slug: String,
    /// The course's title.
    pub title: Option<String>,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
