//! What is not kept any longer, by the settings: dead letters that were dealt with, or that nobody deals with; and who was there,
//! of sessions that are long over. Sessions themselves stay: they name nobody.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use rollcall_shared::config::Settings;
use rollcall_shared::dead_letters::{self, State};
use rollcall_shared::store::entity::{
    course_live_session as session, live_session_interval as interval, live_session_user as user,
};
use sea_orm::sea_query::{Expr, ExprTrait as _, Func, Query, SelectStatement};
use sea_orm::{
    ColumnTrait as _, Condition, DatabaseConnection, DbBackend, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use tracing::info;

use crate::sessions;
use crate::transaction::{in_time, transaction};
use crate::worker::Failure;

/// How many sessions' people one transaction removes.
const SESSIONS: u64 = 100;

/// How long what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// Dead letters that were applied or dropped.
    settled: Duration,
    /// Dead letters that stay dead; for ever, if it is not said.
    dead: Option<Duration>,
    /// Who was in a session, after its end; for ever, if it is not said.
    attendance: Option<Duration>,
}

impl Keeping {
    pub(crate) fn of(settings: &Settings) -> Self {
        let (letters, attendance) = (&settings.dead_letters, &settings.attendance);
        Self { settled: letters.keep, dead: letters.keep_dead, attendance: attendance.keep }
    }

    /// Removes what is not kept any longer.
    ///
    /// # Errors
    /// The database; what was removed until then stays so.
    pub(crate) async fn prune(&self, db: &DatabaseConnection) -> Result<(), Failure> {
        for (states, keep, setting) in [
            (&[State::Applied, State::Dropped][..], Some(self.settled), "dead_letters.keep"),
            (&[State::Dead], self.dead, "dead_letters.keep_dead"),
        ] {
            if let Some(until) = keep.and_then(before) {
                let pruned = in_time(async { Ok(dead_letters::prune(db, states, until).await?) }).await?;
                tell(pruned, "dead letters", setting);
            }
        }
        if let Some(until) = self.attendance.and_then(before) {
            let mut pruned = 0;
            loop {
                let (sessions, people) = prune_attendance(db, until).await?;
                pruned += people;
                if sessions == 0 {
                    break;
                }
            }
            tell(pruned, "people's attendance of sessions", "attendance.keep");
        }
        Ok(())
    }
}

/// The moment so long ago; none, if no calendar has it.
fn before(keep: Duration) -> Option<DateTime<Utc>> {
    Utc::now().checked_sub_signed(TimeDelta::from_std(keep).ok()?)
}

fn tell(pruned: u64, what: &str, setting: &str) {
    if pruned > 0 {
        info!(rows = pruned, setting, "removed {what} that were kept for long enough");
    }
}

/// Of some sessions that were over before `until`, who was there; how many sessions and people it were.
async fn prune_attendance(db: &DatabaseConnection, until: DateTime<Utc>) -> Result<(usize, u64), Failure> {
    let over = &over_before(until, db.get_database_backend());
    transaction(db, |tx| async move {
        let tx = &*tx;
        let some = session::Entity::find().filter(over.clone()).order_by_asc(session::Column::Id).limit(SESSIONS);
        let some: Vec<i64> = some.select_only().column(session::Column::Id).into_tuple().all(tx).await?;
        // As whoever else changes who was there.
        sessions::lock(tx, &some).await?;
        let of_these = || some.iter().copied();
        interval::Entity::delete_many().filter(interval::Column::SessionId.is_in(of_these())).exec(tx).await?;
        let people = user::Entity::delete_many().filter(user::Column::SessionId.is_in(of_these())).exec(tx).await?;
        Ok((some.len(), people.rows_affected))
    })
    .await
}

/// Sessions that ended before `until` and have people yet. One whose end never came counts from its beginning, unless something has
/// changed there since.
fn over_before(until: DateTime<Utc>, backend: DbBackend) -> Condition {
    let time = |column: session::Column| Expr::col((session::Entity, column));
    let begun = Func::coalesce([time(session::Column::StartedAt), time(session::Column::CreatedAt)]);
    let of_session = |entity: &'static str| {
        Query::select()
            .expr(Expr::value(1))
            .from(entity)
            .and_where(Expr::col((entity, "session_id")).equals((session::Entity, session::Column::Id)))
            .to_owned()
    };
    let changed_since: SelectStatement = of_session("live_session_user")
        .and_where(at(Expr::col("updated_at"), backend).gte(of(until, backend)))
        .to_owned();
    let has_ended = at(time(session::Column::EndedAt), backend).lt(of(until, backend));
    let is_forgotten = Condition::all()
        .add(session::Column::EndedAt.is_null())
        .add(at(Expr::from(begun), backend).lt(of(until, backend)))
        .add(Expr::exists(changed_since).not());
    let has_people = Condition::any()
        .add(Expr::exists(of_session("live_session_user")))
        .add(Expr::exists(of_session("live_session_interval")));
    Condition::all().add(Condition::any().add(has_ended).add(is_forgotten)).add(has_people)
}

/// A time as it can be compared: in SQLite times are text, and not all spelt alike.
fn at(time: Expr, backend: DbBackend) -> Expr {
    match backend {
        DbBackend::Sqlite => Expr::from(Func::cust("unixepoch").arg(time)),
        _ => time,
    }
}

fn of(time: DateTime<Utc>, backend: DbBackend) -> Expr {
    match backend {
        DbBackend::Sqlite => Expr::value(time.timestamp()),
        _ => Expr::value(time),
    }
}
