//! Who was erased, as hashes: of `rollcall person erase`. Rollcall's own.

#![allow(elided_lifetimes_in_paths, reason = "the trait spells it so, and async_trait takes no other spelling")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{text, text_null, timestamp_with_time_zone};
use sea_orm_migration::sea_orm::DbBackend;

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(person()).await?;
        manager.create_table(salt()).await?;
        let random = match manager.get_database_backend() {
            DbBackend::Postgres => "gen_random_uuid()::text || gen_random_uuid()::text",
            _ => "hex(randomblob(32))",
        };
        let insert = format!("INSERT INTO erasure_salt (salt) SELECT {random}");
        manager.get_connection().execute_unprepared(&insert).await.map(|_| ())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in ["erasure_salt", "erased_person"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// A person whom events until then bring back no more.
fn person() -> TableCreateStatement {
    Table::create()
        .table("erased_person")
        // Of the server's name and the person's id, with the salt, in hex.
        .col(text("hash").primary_key())
        .col(timestamp_with_time_zone("erased_at"))
        .col(text("erased_by"))
        .col(text_null("reason"))
        .to_owned()
}

/// One row: new for each installation, so that no list of hashes made elsewhere fits.
fn salt() -> TableCreateStatement {
    Table::create().table("erasure_salt").col(text("salt").primary_key()).to_owned()
}
