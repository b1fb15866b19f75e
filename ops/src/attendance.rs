//! `rollcall attendance`: people's rows, for the operator.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use clap::Subcommand;
use rollcall_shared::config::Settings;
use rollcall_shared::store::entity::{course, course_live_session as session};
use rollcall_workers::rebuild::{self, Selection, rebuild};
use sea_orm::{ColumnTrait as _, Condition, DatabaseConnection, EntityTrait as _, QueryFilter as _, QuerySelect as _};

use crate::output::{self, counted};
use crate::progress::Progress;
use crate::{migrate, time};

/// Who was there, and for how long.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Rebuild(Rebuild),
}

/// Derive people's rows (live_session_user) again from what they follow from.
///
/// That is their connections (live_session_interval), the session, course_staff, and what the server said of them. Do it after
/// the LMS has filled course_staff or given sessions their course, or when somebody has changed rows by hand. Rows that are
/// right are not touched; rows without any connection are left alone. Workers may run meanwhile; it may be interrupted and
/// run again at any time.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  rollcall attendance rebuild --course algebra
  rollcall attendance rebuild --since 7days
  rollcall attendance rebuild --session 17 --session 18")]
struct Rebuild {
    /// The session with this id (course_live_session.id); may be given again for more.
    #[arg(long = "session", value_name = "ID")]
    sessions: Vec<i64>,
    /// Sessions of this course, by its slug or its id.
    #[arg(long, value_name = "ID|SLUG")]
    course: Option<String>,
    /// Sessions that began then or later: how long ago (2h, 3days), a day (2026-11-22, UTC), RFC 3339, or Unix seconds.
    #[arg(long, value_name = "TIME", value_parser = time::past)]
    since: Option<DateTime<Utc>>,
    /// Every session there is.
    #[arg(long, conflicts_with_all = ["sessions", "course", "since"])]
    all: bool,
}

pub(crate) async fn run(args: Args, config: Option<&Path>) -> Result<ExitCode> {
    let Action::Rebuild(args) = args.action;
    if args.sessions.is_empty() && args.course.is_none() && args.since.is_none() && !args.all {
        bail!("which sessions? Say so with --session, --course or --since, or --all for every one");
    }
    let db = migrate::migrated(&Settings::load(config)?.database.url, 1).await?;
    let selection = args.selection(&db).await?;
    let done = with_progress(&db, &selection).await?;
    if done.of == 0 {
        output::complain("No session matches: nothing was done.");
        return Ok(ExitCode::SUCCESS);
    }
    output::print(format_args!(
        "Derived the rows of {} in {}: {} changed.",
        counted(done.people, "person", "people"),
        counted(done.sessions, "session", "sessions"),
        done.changed,
    ))?;
    if done.without_interval > 0 {
        output::print(format_args!(
            "Left alone: {} without any connection to derive from.",
            counted(done.without_interval, "row", "rows"),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn with_progress(db: &DatabaseConnection, selection: &Selection) -> Result<rebuild::Progress> {
    let mut shown = None;
    let done = rebuild(db, selection, |at| {
        shown.get_or_insert_with(|| Progress::new("deriving sessions", at.of)).set(at.sessions);
    })
    .await;
    drop(shown);
    done.context("broke off; what was done is right: run it again for the rest")
}

impl Rebuild {
    /// # Errors
    /// A session or the course that is named is not there.
    async fn selection(self, db: &DatabaseConnection) -> Result<Selection> {
        are_there(db, &self.sessions).await?;
        let course = match &self.course {
            Some(course) => Some(course_id(db, course).await?),
            None => None,
        };
        Ok(Selection { sessions: self.sessions, course, since: self.since })
    }
}

async fn are_there(db: &DatabaseConnection, sessions: &[i64]) -> Result<()> {
    let wanted = session::Entity::find().filter(session::Column::Id.is_in(sessions.iter().copied()));
    let found: Vec<i64> = wanted.select_only().column(session::Column::Id).into_tuple().all(db).await?;
    match sessions.iter().find(|session| !found.contains(session)) {
        Some(missing) => bail!("there is no session {missing} in course_live_session"),
        None => Ok(()),
    }
}

async fn course_id(db: &DatabaseConnection, slug_or_id: &str) -> Result<i64> {
    let id = slug_or_id.parse::<i64>().ok().map(|id| course::Column::Id.eq(id));
    let either = Condition::any().add(course::Column::Slug.eq(slug_or_id)).add_option(id);
    let found = course::Entity::find().filter(either).all(db).await?;
    match found.as_slice() {
        [course] => Ok(course.id),
        [] => bail!("there is no course with the slug or the id {slug_or_id}"),
        _ => bail!(
            "{slug_or_id} is the slug of one course and the id of another: give the other name of the one you mean"
        ),
    }
}
