//! Courses, their sessions, who was in them, and their recordings.
//!
//! Integrators read these tables with SQL: names and meanings are a promise. Columns marked *ours* are not part of it.

#![allow(elided_lifetimes_in_paths, reason = "the trait spells it so, and async_trait takes no other spelling")]

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, boolean, double_null, integer, integer_null, pk_auto, text, text_null, text_uniq,
    timestamp_with_time_zone, timestamp_with_time_zone_null,
};

#[derive(Debug, DeriveMigrationName)]
pub(crate) struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in
            [course(), course_staff(), session(), session_start(), user(), interval(), recording(), recording_lease()]
        {
            manager.create_table(table).await?;
        }
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for table in [
            "recording_lease",
            "live_session_recording",
            "live_session_interval",
            "live_session_user",
            "live_session_start",
            "course_live_session",
            "course_staff",
            "course",
        ] {
            manager.drop_table(Table::drop().table(table).to_owned()).await?;
        }
        Ok(())
    }
}

/// Filled by the LMS.
fn course() -> TableCreateStatement {
    Table::create().table("course").col(id()).col(text_uniq("slug")).col(text_null("title")).to_owned()
}

/// Who moderates a course. Filled by the LMS.
fn course_staff() -> TableCreateStatement {
    Table::create()
        .table("course_staff")
        .col(big_integer("course_id"))
        .col(text("user_id"))
        .primary_key(Index::create().col("course_id").col("user_id"))
        .foreign_key(&mut references("course_staff", "course_id", "course", ForeignKeyAction::Cascade))
        .to_owned()
}

/// A room from its opening to its end. The LMS may insert one ahead, with everything null that it does not know.
fn session() -> TableCreateStatement {
    Table::create()
        .table("course_live_session")
        .col(id())
        .col(text("source"))
        .col(text("room_id"))
        .col(text_null("room_sid"))
        .col(text_null("parent_room_id"))
        .col(big_integer_null("course_id"))
        .col(text_null("subject"))
        // Ours: when the subject was said. Null beside a subject: the LMS's own, which no event replaces.
        .col(timestamp_with_time_zone_null("subject_at"))
        .col(timestamp_with_time_zone_null("started_at"))
        .col(timestamp_with_time_zone_null("ended_at"))
        .col(timestamp_with_time_zone_null("created_at").default(Expr::current_timestamp()))
        .col(timestamp_with_time_zone_null("updated_at").default(Expr::current_timestamp()))
        .foreign_key(&mut references("course_live_session", "course_id", "course", ForeignKeyAction::SetNull))
        .to_owned()
}

/// Every time the media server opened the session's room: more than one means that it crashed in between.
fn session_start() -> TableCreateStatement {
    Table::create()
        .table("live_session_start")
        .col(big_integer("session_id"))
        .col(timestamp_with_time_zone("started_at"))
        .primary_key(Index::create().col("session_id").col("started_at"))
        .foreign_key(&mut of_session("live_session_start"))
        .to_owned()
}

/// One person's attendance of one session, derived from the intervals.
fn user() -> TableCreateStatement {
    Table::create()
        .table("live_session_user")
        .col(id())
        .col(big_integer("session_id"))
        .col(text("user_id"))
        .col(text_null("name"))
        // Ours: when the name was said, and whether an event said that the person moderates.
        .col(timestamp_with_time_zone_null("name_at"))
        .col(boolean("said_admin").default(false))
        .col(text("role"))
        .col(timestamp_with_time_zone_null("entered_at"))
        .col(timestamp_with_time_zone_null("exited_at"))
        .col(boolean("is_online"))
        .col(big_integer("total_seconds"))
        .col(integer("join_count"))
        .col(timestamp_with_time_zone("created_at").default(Expr::current_timestamp()))
        .col(timestamp_with_time_zone("updated_at").default(Expr::current_timestamp()))
        .foreign_key(&mut of_session("live_session_user"))
        .to_owned()
}

/// One connection of one person.
fn interval() -> TableCreateStatement {
    Table::create()
        .table("live_session_interval")
        .col(id())
        .col(big_integer("session_id"))
        .col(text("user_id"))
        .col(text("participant_sid"))
        .col(timestamp_with_time_zone_null("joined_at"))
        // Ours: Unix milliseconds, for ordering joins within a second.
        .col(big_integer_null("joined_at_ms"))
        .col(timestamp_with_time_zone_null("left_at"))
        .col(text_null("disconnect_reason"))
        .foreign_key(&mut of_session("live_session_interval"))
        .to_owned()
}

/// A recording and where it is archived.
fn recording() -> TableCreateStatement {
    Table::create()
        .table("live_session_recording")
        .col(id())
        .col(big_integer("session_id"))
        .col(text("source"))
        .col(text("record_id"))
        .col(text_null("title"))
        .col(text_null("recording_type"))
        .col(text("status"))
        .col(text_null("file_key"))
        .col(text_null("file_name"))
        .col(big_integer_null("file_size"))
        .col(text_null("sha256"))
        .col(double_null("duration_seconds"))
        .col(integer_null("width"))
        .col(integer_null("height"))
        .col(text_null("video_codec"))
        .col(text_null("thumbnail_key"))
        .col(timestamp_with_time_zone_null("recorded_at"))
        .col(text_null("error"))
        .col(timestamp_with_time_zone("created_at").default(Expr::current_timestamp()))
        .col(timestamp_with_time_zone("updated_at").default(Expr::current_timestamp()))
        .check(Expr::col("status").is_in(["processing", "ready", "failed"]))
        .check(Expr::col("recording_type").is_in(["video", "voice"]))
        .foreign_key(&mut of_session("live_session_recording"))
        .to_owned()
}

/// Ours: who fetches a recording now, and how the last try that outlived its delivery went.
fn recording_lease() -> TableCreateStatement {
    Table::create()
        .table("recording_lease")
        .col(big_integer("recording_id").primary_key())
        .col(text("holder"))
        .col(timestamp_with_time_zone("expires_at"))
        .col(text_null("failure"))
        .col(boolean("failure_is_permanent").default(false))
        .foreign_key(&mut references(
            "recording_lease",
            "recording_id",
            "live_session_recording",
            ForeignKeyAction::Cascade,
        ))
        .to_owned()
}

fn indexes() -> Vec<IndexCreateStatement> {
    let unique = |table: &'static str, columns: &[&'static str]| {
        let mut index = Index::create();
        index.name(format!("{table}_{}_key", columns.join("_"))).table(table).unique();
        for column in columns {
            index.col(*column);
        }
        index.to_owned()
    };
    vec![
        unique("course_live_session", &["source", "room_id", "room_sid"]),
        unique("live_session_user", &["session_id", "user_id"]),
        unique("live_session_interval", &["session_id", "user_id", "participant_sid"]),
        unique("live_session_recording", &["source", "record_id"]),
    ]
}

fn id() -> ColumnDef {
    pk_auto("id").big_integer().to_owned()
}

fn of_session(table: &'static str) -> ForeignKeyCreateStatement {
    references(table, "session_id", "course_live_session", ForeignKeyAction::Cascade)
}

fn references(
    table: &'static str,
    column: &'static str,
    to: &'static str,
    on_delete: ForeignKeyAction,
) -> ForeignKeyCreateStatement {
    ForeignKey::create().from(table, column).to(to, "id").on_delete(on_delete).to_owned()
}
