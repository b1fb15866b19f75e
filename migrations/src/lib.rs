//! The schema of Rollcall's database, for PostgreSQL and SQLite: one module a migration, oldest first.
//!
//! `rollcall migrate` applies them; the workers only ask whether all are there.

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::{MigrationTrait, async_trait};

mod m20261122_000001_first;
mod m20261124_000002_operations;
mod m20261125_000003_lease_deaths;
mod m20261126_000004_erasure;

/// Every migration.
#[derive(Debug)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261122_000001_first::Migration),
            Box::new(m20261124_000002_operations::Migration),
            Box::new(m20261125_000003_lease_deaths::Migration),
            Box::new(m20261126_000004_erasure::Migration),
        ]
    }
}
