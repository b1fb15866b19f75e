//! What operators work with: dead letters and their history, which workers run, and which shall rest.
//!
//! Integrators may read `dead_letter`; `docs/tables.md` says which of its columns are a promise. The rest is Rollcall's own.

#![allow(elided_lifetimes_in_paths, reason = "the trait spells it so, and async_trait takes no other spelling")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, blob, blob_null, double, integer, pk_auto, text, text_null, text_uniq, timestamp_with_time_zone,
    timestamp_with_time_zone_null,
};

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [dead_letter(), failure(), change(), worker_process(), worker_pause()] {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        manager.alter_table(failure_cause().to_owned()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let failure_cause = Table::alter().table("recording_lease").drop_column("failure_cause").to_owned();
        manager.alter_table(failure_cause).await?;
        for table in ["worker_pause", "worker_process", "dead_letter_change", "dead_letter_failure", "dead_letter"] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// A message that died: why, and what became of it.
fn dead_letter() -> TableCreateStatement {
    Table::create()
        .table("dead_letter")
        .col(id())
        // The message's own id: it dies once, however often the broker delivers that.
        .col(text_uniq("message_id"))
        .col(text("worker"))
        .col(text("event"))
        .col(text_null("event_id"))
        .col(text("source"))
        .col(text_null("room_id"))
        .col(text_null("user_id"))
        .col(text_null("traceparent"))
        .col(timestamp_with_time_zone("received_at"))
        .col(text("state"))
        // Of the last failure.
        .col(text("kind"))
        .col(text("cause"))
        .col(text("error"))
        .col(integer("attempts"))
        .col(text_null("host"))
        .col(timestamp_with_time_zone("first_failed_at"))
        .col(timestamp_with_time_zone("last_failed_at"))
        // How often it was sent back to its worker; whose run did so last.
        .col(integer("replays").default(0))
        .col(timestamp_with_time_zone_null("replayed_at"))
        .col(text_null("replayed_by"))
        .col(text_null("replay_run"))
        .col(timestamp_with_time_zone_null("applied_at"))
        .col(timestamp_with_time_zone("created_at"))
        .col(timestamp_with_time_zone("updated_at"))
        // A JSON object: as they were on the broker.
        .col(text("headers"))
        .col(blob("body"))
        // Where the body was edited since: as the server sent it.
        .col(blob_null("original_body"))
        .check(Expr::col("state").is_in(["dead", "replaying", "applied", "dropped"]))
        .check(Expr::col("kind").is_in(["permanent", "exhausted", "poison", "purged"]))
        .to_owned()
}

/// Every time that it died. What the broker delivers twice has failed at the same time.
fn failure() -> TableCreateStatement {
    Table::create()
        .table("dead_letter_failure")
        .col(big_integer("dead_letter_id"))
        .col(timestamp_with_time_zone("failed_at"))
        // Which replay it was; 0, the first time.
        .col(integer("replay"))
        .col(text("kind"))
        .col(text("cause"))
        .col(text("error"))
        .col(integer("attempts"))
        .col(text_null("host"))
        .primary_key(Index::create().col("dead_letter_id").col("failed_at"))
        .foreign_key(&mut of_dead_letter("dead_letter_failure"))
        .to_owned()
}

/// What somebody did with it.
fn change() -> TableCreateStatement {
    Table::create()
        .table("dead_letter_change")
        .col(id())
        .col(big_integer("dead_letter_id"))
        .col(timestamp_with_time_zone("changed_at"))
        .col(text("changed_by"))
        .col(text("change"))
        .col(text_null("reason"))
        .foreign_key(&mut of_dead_letter("dead_letter_change"))
        .to_owned()
}

/// A worker that runs, as it last told.
fn worker_process() -> TableCreateStatement {
    Table::create()
        .table("worker_process")
        .col(text("id").primary_key())
        .col(text("worker"))
        .col(text("host"))
        .col(big_integer("pid"))
        .col(text("version"))
        .col(text("state"))
        .col(timestamp_with_time_zone("started_at"))
        .col(timestamp_with_time_zone("seen_at"))
        .col(big_integer("in_flight"))
        // Since it started.
        .col(big_integer("settled"))
        // A second, since it last told.
        .col(double("rate"))
        // When the oldest event that it has was taken in.
        .col(timestamp_with_time_zone_null("oldest_received_at"))
        .to_owned()
}

/// A worker that shall rest.
fn worker_pause() -> TableCreateStatement {
    Table::create()
        .table("worker_pause")
        .col(text("worker").primary_key())
        .col(timestamp_with_time_zone("paused_at"))
        .col(text("paused_by"))
        .col(text_null("reason"))
        .to_owned()
}

/// What dead letters are grouped by, of a job that outlived its delivery.
fn failure_cause() -> TableAlterStatement {
    Table::alter().table("recording_lease").add_column(text_null("failure_cause")).to_owned()
}

fn indexes() -> Vec<IndexCreateStatement> {
    let index = |table: &'static str, name: &'static str, columns: &[&'static str]| {
        let mut index = Index::create();
        index.name(name).table(table);
        for column in columns {
            index.col(*column);
        }
        index.to_owned()
    };
    vec![
        // Groups, out of nothing but the index; and lists from the latest on.
        index(
            "dead_letter",
            "dead_letter_by_cause",
            &["state", "worker", "cause", "kind", "first_failed_at", "last_failed_at", "id"],
        ),
        index("dead_letter", "dead_letter_by_time", &["state", "last_failed_at", "id"]),
        index("dead_letter", "dead_letter_by_run", &["replay_run", "state"]),
        // What is kept long enough.
        index("dead_letter", "dead_letter_by_update", &["state", "updated_at"]),
        index("dead_letter_change", "dead_letter_change_by_letter", &["dead_letter_id"]),
    ]
}

fn id() -> ColumnDef {
    pk_auto("id").big_integer().to_owned()
}

fn of_dead_letter(table: &'static str) -> ForeignKeyCreateStatement {
    ForeignKey::create()
        .from(table, "dead_letter_id")
        .to("dead_letter", "id")
        .on_delete(ForeignKeyAction::Cascade)
        .to_owned()
}
