//! Who was there, and for how long: a person's row, derived from the person's intervals and the session.
//!
//! Data comes from `live_session_interval`, `live_session_start`, `course_staff` and the locked session, and goes to
//! `live_session_user`. Nothing here depends on the order in which events arrived.

use std::collections::{BTreeMap, HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use rollcall_shared::erasure;
use rollcall_shared::store::entity::{
    course_live_session as session, course_staff as staff, live_session_interval as interval,
    live_session_start as start, live_session_user as user,
};
use sea_orm::sea_query::OnConflict;
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::NotSet, ActiveValue::Set, ColumnTrait as _, DatabaseTransaction,
    EntityTrait as _, IntoActiveModel as _, QueryFilter as _, QueryOrder as _,
};

use crate::sql::{ROWS_PER_STATEMENT, among};
use crate::worker::Failure;

/// What events say of a person besides coming and going.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// The name, and when it was said.
    name: Option<(DateTime<Utc>, String)>,
    is_admin: bool,
}

impl Said {
    /// The name said last counts; of two said in the same second, always the same one.
    pub(crate) fn hear(&mut self, at: DateTime<Utc>, name: Option<&String>, is_admin: Option<bool>) {
        if let Some(name) = name {
            self.name = self.name.take().max(Some((at, name.clone())));
        }
        self.is_admin |= is_admin == Some(true);
    }

    fn merge(self, known: &user::Model) -> Self {
        let known_name = known.name_at.zip(known.name.clone());
        Self { name: self.name.max(known_name), is_admin: self.is_admin || known.said_admin }
    }
}

/// One person in one session.
pub(crate) type Person = (i64, String);

/// Derives the rows of these people, whose sessions are locked; how many of them changed. One that does not stays untouched.
pub(crate) async fn derive(
    tx: &DatabaseTransaction,
    sessions: &BTreeMap<i64, session::Model>,
    people: BTreeMap<Person, Said>,
) -> Result<u64, Failure> {
    let starts = starts(tx, sessions.keys().copied()).await?;
    let people: Vec<(Person, Said)> = people.into_iter().collect();
    let mut changed = 0;
    for people in people.chunks(ROWS_PER_STATEMENT) {
        let keys = || people.iter().map(|(person, _)| person.clone());
        let mut intervals = intervals(tx, keys()).await?;
        let known = known(tx, keys()).await?;
        let staff = staff(tx, sessions, keys()).await?;
        let rows = people.iter().filter_map(|(person, said)| {
            let session = &sessions[&person.0];
            let starts = starts.get(&person.0).map_or(&[][..], Vec::as_slice);
            let intervals = intervals.remove(person).unwrap_or_default();
            let known = known.get(person);
            if intervals.is_empty() && known.is_none() {
                // Somebody has removed the person since it was read who is there.
                return None;
            }
            let attendance = attend(intervals, starts, session.ended_at);
            let said = known.map_or_else(|| said.clone(), |known| said.clone().merge(known));
            let moderates = said.is_admin || staff.contains(person);
            let row = row(person, attendance, said, moderates, known);
            (known != Some(&row)).then_some(row)
        });
        let rows: Vec<_> = rows.collect();
        changed += rows.len() as u64;
        save(tx, rows).await?;
    }
    Ok(changed)
}

/// Derives the rows of everybody in these locked sessions.
pub(crate) async fn derive_all(
    tx: &DatabaseTransaction,
    sessions: &BTreeMap<i64, session::Model>,
) -> Result<(), Failure> {
    erasure::hold(tx).await?;
    let everybody =
        user::Entity::find().filter(user::Column::SessionId.is_in(sessions.keys().copied())).all(tx).await?;
    let people = everybody.into_iter().map(|row| ((row.session_id, row.user_id), Said::default())).collect();
    derive(tx, sessions, people).await?;
    Ok(())
}

/// One connection.
#[derive(Debug, Clone)]
struct Interval {
    joined_at: Option<DateTime<Utc>>,
    left_at: Option<DateTime<Utc>>,
}

/// What a person's intervals come to.
#[derive(Debug, PartialEq, Eq)]
struct Attendance {
    entered_at: Option<DateTime<Utc>>,
    exited_at: Option<DateTime<Utc>>,
    is_online: bool,
    total: TimeDelta,
    join_count: usize,
}

/// The rule. `intervals` are one person's in the order of joining, `starts` the session's in order.
fn attend(intervals: Vec<Interval>, starts: &[DateTime<Utc>], ended_at: Option<DateTime<Utc>>) -> Attendance {
    let ends: Vec<_> = intervals
        .iter()
        .enumerate()
        .map(|(index, interval)| {
            let next_join = intervals[index + 1..].iter().find_map(|next| next.joined_at);
            interval.left_at.or_else(|| match interval.joined_at {
                Some(joined_at) => ends_without_leave(joined_at, next_join, starts, ended_at),
                None => ended_at,
            })
        })
        .collect();
    let is_online = ends.iter().any(Option::is_none);
    let ended = intervals.iter().zip(&ends).filter_map(|(interval, end)| Some((interval.joined_at?, (*end)?)));
    let counted = ended.filter(|(joined, _)| ended_at.is_none_or(|session_end| *joined <= session_end));
    Attendance {
        entered_at: intervals.iter().filter_map(|interval| interval.joined_at).min(),
        exited_at: if is_online { None } else { ends.iter().copied().flatten().max() },
        is_online,
        total: union(counted.collect()),
        join_count: intervals.len(),
    }
}

/// When a connection ended whose leave is missing: at the earliest of the person's next join (a media server lets one
/// connection of a person in), the media server's next start (it crashed, and took every connection along) and the end of
/// the session. None while it goes on.
fn ends_without_leave(
    joined_at: DateTime<Utc>,
    next_join: Option<DateTime<Utc>>,
    starts: &[DateTime<Utc>],
    ended_at: Option<DateTime<Utc>>,
) -> Option<DateTime<Utc>> {
    // The first start can bear a later second than the first person's join, so it is no crash.
    let crash = starts.iter().skip(1).copied().find(|start| *start > joined_at);
    let end = [next_join, crash, ended_at].into_iter().flatten().min()?;
    // Who joins after the end has left by the join.
    Some(end.max(joined_at))
}

/// How much time the intervals cover together.
fn union(mut intervals: Vec<(DateTime<Utc>, DateTime<Utc>)>) -> TimeDelta {
    intervals.sort_unstable();
    let mut total = TimeDelta::zero();
    let mut covered_until = DateTime::<Utc>::MIN_UTC;
    for (start, end) in intervals {
        let start = start.max(covered_until);
        if end > start {
            total += end - start;
            covered_until = end;
        }
    }
    total
}

async fn starts(
    tx: &DatabaseTransaction,
    sessions: impl Iterator<Item = i64>,
) -> Result<HashMap<i64, Vec<DateTime<Utc>>>, Failure> {
    let rows = start::Entity::find()
        .filter(start::Column::SessionId.is_in(sessions))
        .order_by_asc(start::Column::StartedAt)
        .all(tx)
        .await?;
    let mut starts: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        starts.entry(row.session_id).or_default().push(row.started_at);
    }
    Ok(starts)
}

/// Each person's intervals in the order of joining: by the millisecond where the server tells it, then by connection.
async fn intervals(
    tx: &DatabaseTransaction,
    people: impl Iterator<Item = Person>,
) -> Result<HashMap<Person, Vec<Interval>>, Failure> {
    let columns = [interval::Column::SessionId, interval::Column::UserId];
    let mut rows = interval::Entity::find().filter(among(columns, people)).all(tx).await?;
    rows.sort_by_cached_key(|row| {
        let joined = row.joined_at_ms.or_else(|| row.joined_at.map(|at| at.timestamp_millis()));
        (joined, row.participant_sid.clone())
    });
    let mut intervals: HashMap<_, Vec<_>> = HashMap::new();
    for row in rows {
        let interval = Interval { joined_at: row.joined_at, left_at: row.left_at };
        intervals.entry((row.session_id, row.user_id)).or_default().push(interval);
    }
    Ok(intervals)
}

async fn known(
    tx: &DatabaseTransaction,
    people: impl Iterator<Item = Person>,
) -> Result<HashMap<Person, user::Model>, Failure> {
    let columns = [user::Column::SessionId, user::Column::UserId];
    let rows = user::Entity::find().filter(among(columns, people)).all(tx).await?;
    Ok(rows.into_iter().map(|row| ((row.session_id, row.user_id.clone()), row)).collect())
}

/// Those of the people who are staff of their session's course.
async fn staff(
    tx: &DatabaseTransaction,
    sessions: &BTreeMap<i64, session::Model>,
    people: impl Iterator<Item = Person>,
) -> Result<HashSet<Person>, Failure> {
    let in_courses: Vec<_> = people
        .filter_map(|person| Some((sessions[&person.0].course_id?, person)))
        .map(|(course, person)| ((course, person.1.clone()), person))
        .collect();
    if in_courses.is_empty() {
        return Ok(HashSet::new());
    }
    let columns = [staff::Column::CourseId, staff::Column::UserId];
    let wanted = in_courses.iter().map(|(member, _)| member.clone());
    let rows = staff::Entity::find().filter(among(columns, wanted)).all(tx).await?;
    let members: HashSet<_> = rows.into_iter().map(|row| (row.course_id, row.user_id)).collect();
    Ok(in_courses.into_iter().filter(|(member, _)| members.contains(member)).map(|(_, person)| person).collect())
}

/// The row as it must be. It takes over of the known one what is not derived.
fn row(
    person: &Person,
    attendance: Attendance,
    said: Said,
    moderates: bool,
    known: Option<&user::Model>,
) -> user::Model {
    let (name_at, name) = said.name.unzip();
    let now = Utc::now();
    user::Model {
        id: known.map_or(0, |known| known.id),
        session_id: person.0,
        user_id: person.1.clone(),
        name,
        name_at,
        said_admin: said.is_admin,
        role: if moderates { "moderator" } else { "participant" }.to_owned(),
        entered_at: attendance.entered_at,
        exited_at: attendance.exited_at,
        is_online: attendance.is_online,
        total_seconds: attendance.total.num_seconds(),
        join_count: attendance.join_count.try_into().unwrap_or(i32::MAX),
        created_at: known.map_or(now, |known| known.created_at),
        updated_at: known.map_or(now, |known| known.updated_at),
    }
}

async fn save(tx: &DatabaseTransaction, rows: Vec<user::Model>) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let now = Utc::now();
    let rows = rows.into_iter().map(|row| user::ActiveModel {
        id: NotSet,
        updated_at: Set(now),
        ..row.into_active_model().reset_all()
    });
    let on_conflict = OnConflict::columns([user::Column::SessionId, user::Column::UserId])
        .update_columns([
            user::Column::Name,
            user::Column::NameAt,
            user::Column::SaidAdmin,
            user::Column::Role,
            user::Column::EnteredAt,
            user::Column::ExitedAt,
            user::Column::IsOnline,
            user::Column::TotalSeconds,
            user::Column::JoinCount,
            user::Column::UpdatedAt,
        ])
        .to_owned();
    user::Entity::insert_many(rows).on_conflict(on_conflict).exec_without_returning(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn attended(
        intervals: &[(Option<i64>, Option<i64>)],
        starts: &[i64],
        ended: Option<i64>,
    ) -> (Option<i64>, Option<i64>, bool, i64) {
        let intervals = intervals
            .iter()
            .map(|(joined, left)| Interval { joined_at: joined.map(at), left_at: left.map(at) })
            .collect();
        let starts: Vec<_> = starts.iter().copied().map(at).collect();
        let attendance = attend(intervals, &starts, ended.map(at));
        let seconds = |time: Option<DateTime<Utc>>| time.map(|time| (time - at(0)).num_seconds());
        let Attendance { entered_at, exited_at, is_online, total, .. } = attendance;
        (seconds(entered_at), seconds(exited_at), is_online, total.num_seconds())
    }

    #[test]
    fn leaves_end_intervals() {
        let twice = [(Some(0), Some(10)), (Some(20), Some(25))];
        assert_eq!(attended(&twice, &[0], Some(60)), (Some(0), Some(25), false, 15));
        let overlapping = [(Some(0), Some(10)), (Some(5), Some(12)), (Some(6), Some(8))];
        assert_eq!(attended(&overlapping, &[0], Some(60)), (Some(0), Some(12), false, 12));
    }

    #[test]
    fn an_open_interval_counts_when_it_ends() {
        assert_eq!(attended(&[(Some(0), Some(10)), (Some(20), None)], &[0], None), (Some(0), None, true, 10));
        assert_eq!(attended(&[(Some(0), Some(10)), (Some(20), None)], &[0], Some(60)), (Some(0), Some(60), false, 50));
    }

    #[test]
    fn a_missing_leave_is_made_up_for_by_the_earliest_of_three() {
        let twice = [(Some(0), None), (Some(20), Some(30))];
        assert_eq!(attended(&twice, &[0], Some(60)), (Some(0), Some(30), false, 30));
        assert_eq!(attended(&twice, &[0, 15], Some(60)), (Some(0), Some(30), false, 25));
        assert_eq!(attended(&[(Some(0), None)], &[0, 15], None), (Some(0), Some(15), false, 15));
        // The first start is no crash, whatever its second.
        assert_eq!(attended(&[(Some(0), None)], &[1], None), (Some(0), None, true, 0));
        // A crash before the join took nothing along.
        assert_eq!(attended(&[(Some(20), None)], &[0, 20], None), (Some(20), None, true, 0));
    }

    #[test]
    fn what_joins_after_the_end_is_in_nobodys_total() {
        assert_eq!(attended(&[(Some(70), Some(80))], &[0], Some(60)), (Some(70), Some(80), false, 0));
        assert_eq!(attended(&[(Some(70), None)], &[0], Some(60)), (Some(70), Some(70), false, 0));
        // A leave may come after the end, and is right.
        assert_eq!(attended(&[(Some(0), Some(61))], &[0], Some(60)), (Some(0), Some(61), false, 61));
    }

    #[test]
    fn no_total_is_less_than_nothing() {
        assert_eq!(attended(&[(Some(10), Some(9))], &[0], None), (Some(10), Some(9), false, 0));
        assert_eq!(attended(&[(None, Some(9))], &[0], None), (None, Some(9), false, 0));
        assert_eq!(attended(&[(None, None)], &[0], Some(60)), (None, Some(60), false, 0));
    }

    #[test]
    fn the_name_said_last_counts_whatever_comes_first() {
        let say = |order: &[(i64, &str)]| {
            let mut said = Said::default();
            for (seconds, name) in order {
                said.hear(at(*seconds), Some(&(*name).to_owned()), None);
            }
            said.name.unwrap().1
        };
        assert_eq!(say(&[(1, "a"), (2, "b")]), "b");
        assert_eq!(say(&[(2, "b"), (1, "a")]), "b");
        assert_eq!(say(&[(2, "b"), (2, "c")]), say(&[(2, "c"), (2, "b")]));
    }
}
