//! What kills whoever fetches it, and how long a lease is: of `recording_lease`, which is Rollcall's own.

#![allow(elided_lifetimes_in_paths, reason = "the trait spells it so, and async_trait takes no other spelling")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{double, integer};

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

/// The longest lease that the settings allow: whoever runs before this migration's version does not say how long its own is.
const LONGEST_SECONDS: f64 = 600.0;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one at a time.
        for mut column in [deaths(), length_seconds()] {
            manager.alter_table(lease().add_column(&mut column).to_owned()).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["length_seconds", "deaths"] {
            manager.alter_table(lease().drop_column(column).to_owned()).await?;
        }
        Ok(())
    }
}

fn lease() -> TableAlterStatement {
    Table::alter().table("recording_lease").to_owned()
}

/// How many holders, one after the other, were taken for dead.
fn deaths() -> ColumnDef {
    integer("deaths").default(0).to_owned()
}

fn length_seconds() -> ColumnDef {
    double("length_seconds").default(LONGEST_SECONDS).to_owned()
}
