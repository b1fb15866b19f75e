//! `course_staff`: who moderates a course. Filled by the LMS.

use sea_orm::entity::prelude::*;

/// Who moderates a course. Filled by the LMS.
#[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
#[sea_orm(table_name = "course_staff")]
pub struct Model {
    /// The course.
    #[sea_orm(primary_key, auto_increment = false)]
    pub course_id: i64,
    /// The LMS's id of the person.
    #[sea_orm(primary_key, auto_increment = false)]
    pub user_id: String,
}

/// Joins are written where they are needed.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}
