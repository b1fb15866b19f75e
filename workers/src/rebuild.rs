//! People's rows derived again, by the same rule as ever: after the LMS has filled `course_staff`, say, or given a session its
//! course, or when somebody has changed rows by hand.
//!
//! The rule's inputs are the person's intervals, the session, `course_staff` and what was said of the person, which is in
//! the row itself. Each transaction locks its sessions as the workers do, so that all of them may go on meanwhile; it is
//! short, so that none of them waits for long; and whatever ends the program, what was committed is right and the rest is
//! as it was.

use chrono::{DateTime, Utc};
use rollcall_shared::erasure;
use rollcall_shared::store::entity::{
    course_live_session as session, live_session_interval as interval, live_session_user as user,
};
use sea_orm::sea_query::{Expr, ExprTrait as _, Func, Query};
use sea_orm::{
    ColumnTrait as _, Condition, DatabaseConnection, DbBackend, EntityTrait as _, PaginatorTrait as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _,
};

use crate::presence::{self, Person, Said};
use crate::sessions;
use crate::sql::ROWS_PER_STATEMENT;
use crate::transaction::{in_time, transaction};
use crate::worker::Failure;

/// How many sessions are looked at together, and locked by one transaction at most.
const SESSIONS: u64 = 100;

/// Which sessions' people: those that everything given here says.
#[derive(Debug, Default, Clone)]
pub struct Selection {
    /// One of these, if there are any.
    pub sessions: Vec<i64>,
    /// Of this course.
    pub course: Option<i64>,
    /// Begun at this time or later; one that has not begun counts by when its row was made.
    pub since: Option<DateTime<Utc>>,
}

/// How far it has come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// How many sessions there are to do.
    pub of: u64,
    /// How many are done.
    pub sessions: u64,
    /// How many people's rows were derived.
    pub people: u64,
    /// How many of those rows came out different, or were not there.
    pub changed: u64,
    /// How many rows have no interval to derive them from: they are not of Rollcall's making, and stay as they are.
    pub without_interval: u64,
}

/// Derives the rows of everybody who has an interval in one of these sessions. Tells `progress` at the beginning and after each
/// transaction.
///
/// # Errors
/// The database; what was done until then stays.
pub async fn rebuild(
    db: &DatabaseConnection,
    selection: &Selection,
    mut progress: impl FnMut(Progress),
) -> Result<Progress, Failure> {
    let wanted = selection.condition(db.get_database_backend());
    // What begins from here on has its rows from what is known now.
    let (of, last) = in_time(extent(db, &wanted)).await?;
    let wanted = wanted.add(session::Column::Id.lte(last));
    let mut done = Progress { of, ..Progress::default() };
    progress(done);
    let mut sessions = in_time(sessions_after(db, &wanted, 0)).await?;
    while let Some(last) = sessions.last() {
        let mut people = in_time(people_after(db, &sessions, None)).await?;
        while let Some(last) = people.last() {
            done.changed += derive(db, &people).await?;
            done.people += people.len() as u64;
            progress(done);
            people = in_time(people_after(db, &sessions, Some(last))).await?;
        }
        done.without_interval += in_time(without_interval(db, &sessions)).await?;
        done.sessions += sessions.len() as u64;
        progress(done);
        sessions = in_time(sessions_after(db, &wanted, *last)).await?;
    }
    Ok(done)
}

impl Selection {
    fn condition(&self, backend: DbBackend) -> Condition {
        let sessions = (!self.sessions.is_empty()).then(|| session::Column::Id.is_in(self.sessions.iter().copied()));
        Condition::all()
            .add_option(sessions)
            .add_option(self.course.map(|course| session::Column::CourseId.eq(course)))
            .add_option(self.since.map(|since| begun_since(since, backend)))
    }
}

fn begun_since(since: DateTime<Utc>, backend: DbBackend) -> Expr {
    let columns = [session::Column::StartedAt, session::Column::CreatedAt];
    let begun = Func::coalesce(columns.map(|column| Expr::col((session::Entity, column))));
    match backend {
        // Times are text there, and not all spelt alike: CURRENT_TIMESTAMP has no T and no offset.
        DbBackend::Sqlite => Expr::from(Func::cust("unixepoch").arg(begun)).gte(since.timestamp()),
        _ => Expr::from(begun).gte(since),
    }
}

/// How many sessions are wanted, and the last one's id.
async fn extent(db: &DatabaseConnection, wanted: &Condition) -> Result<(u64, i64), Failure> {
    let sessions = || session::Entity::find().filter(wanted.clone());
    let last = sessions().order_by_desc(session::Column::Id).one(db).await?;
    Ok((sessions().count(db).await?, last.map_or(0, |session| session.id)))
}

/// The next of the wanted sessions' ids, in order.
async fn sessions_after(db: &DatabaseConnection, wanted: &Condition, after: i64) -> Result<Vec<i64>, Failure> {
    let sessions = session::Entity::find()
        .select_only()
        .column(session::Column::Id)
        .filter(wanted.clone())
        .filter(session::Column::Id.gt(after))
        .order_by_asc(session::Column::Id)
        .limit(SESSIONS);
    Ok(sessions.into_tuple().all(db).await?)
}

/// The next of those who have an interval in these sessions, in the database's order, which knows better how texts compare.
async fn people_after(
    db: &DatabaseConnection,
    sessions: &[i64],
    after: Option<&Person>,
) -> Result<Vec<Person>, Failure> {
    let person = [interval::Column::SessionId, interval::Column::UserId];
    let is_later = after.map(|(session, user)| {
        Expr::tuple(person.map(Expr::col)).gt(Expr::tuple([Expr::value(*session), Expr::value(user.as_str())]))
    });
    let people = interval::Entity::find()
        .select_only()
        .columns(person)
        .distinct()
        .filter(Condition::all().add(interval::Column::SessionId.is_in(sessions.iter().copied())).add_option(is_later))
        .order_by_asc(interval::Column::SessionId)
        .order_by_asc(interval::Column::UserId)
        .limit(ROWS_PER_STATEMENT as u64);
    Ok(people.into_tuple().all(db).await?)
}

/// How many of these people's rows were not as they must be.
async fn derive(db: &DatabaseConnection, people: &[Person]) -> Result<u64, Failure> {
    let ids: Vec<i64> = people.iter().map(|(session, _)| *session).collect();
    let ids = ids.as_slice();
    transaction(db, |tx| async move {
        let sessions = sessions::lock(&tx, ids).await?;
        erasure::hold(&tx).await?;
        // One may be gone since.
        let there = people.iter().filter(|(session, _)| sessions.contains_key(session));
        let there = there.map(|person| (person.clone(), Said::default())).collect();
        presence::derive(&tx, &sessions, there).await
    })
    .await
}

async fn without_interval(db: &DatabaseConnection, sessions: &[i64]) -> Result<u64, Failure> {
    let of_the_same = |of_interval: interval::Column, of_row: user::Column| {
        Expr::col((interval::Entity, of_interval)).equals((user::Entity, of_row))
    };
    let its_intervals = Query::select()
        .expr(Expr::value(1))
        .from(interval::Entity)
        .and_where(of_the_same(interval::Column::SessionId, user::Column::SessionId))
        .and_where(of_the_same(interval::Column::UserId, user::Column::UserId))
        .to_owned();
    let rows = user::Entity::find()
        .filter(user::Column::SessionId.is_in(sessions.iter().copied()))
        .filter(Expr::exists(its_intervals).not());
    Ok(rows.count(db).await?)
}
