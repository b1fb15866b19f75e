//! Attendance: a person's connections become intervals, and the intervals the person's row.
//!
//! An interval is one connection of one person. A join sets its start; a leave its end and, since it says when the
//! connection began, its start too: so it may arrive first, or after the end of the room. Nothing else writes an interval.
//! Of a person who was erased since the connection began, nothing is written.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use metrics::counter;
use rollcall_shared::config::{Settings, UnknownSessions};
use rollcall_shared::erasure::{Register, person_of};
use rollcall_shared::event::{Change, Connection, Departure, Event, WorkerName};
use rollcall_shared::store::entity::live_session_interval as interval;
use sea_orm::sea_query::{CaseStatement, Condition, Expr, Func, OnConflict};
use sea_orm::{ActiveValue::Set, DatabaseConnection, DatabaseTransaction, EntityTrait as _};

use crate::presence::{self, Person, Said};
use crate::sessions::{self, Learned};
use crate::sql::ROWS_PER_STATEMENT;
use crate::transaction::apply;
use crate::worker::{self, Failure, Handled, Outcome, Worker};

/// The worker.
#[derive(Debug)]
pub struct Attendance {
    db: DatabaseConnection,
    unknown_sessions: UnknownSessions,
    erased: Register,
}

impl Attendance {
    /// A worker on this database.
    pub fn new(settings: &Settings, db: DatabaseConnection) -> Self {
        Self { db, unknown_sessions: settings.sessions.unknown, erased: Register::default() }
    }

    async fn apply(&self, tx: &DatabaseTransaction, events: &[Event]) -> Result<(), Failure> {
        let erased = self.erased.of(tx, events.iter().filter_map(|event| Some(person_of(event)?.0))).await?;
        let (of_erased, events): (Vec<_>, Vec<_>) = events.iter().partition(|event| erased.has_event(event));
        if !of_erased.is_empty() {
            counter!("rollcall_worker_ignored_total", "worker" => Self::NAME.as_str(), "reason" => "erased person")
                .increment(of_erased.len() as u64);
        }
        let rooms: Vec<_> = events.iter().map(|event| &event.room).collect();
        let ids = sessions::resolve(tx, &rooms, self.unknown_sessions).await?;
        let mut sessions = sessions::lock(tx, &ids).await?;

        let batch = Batch::of(ids.into_iter().zip(events));
        save(tx, batch.intervals).await?;
        for (id, learned) in batch.learned {
            if let Some(session) = sessions.get_mut(&id) {
                learned.save(tx, session).await?;
            }
        }
        presence::derive(tx, &sessions, batch.people).await?;
        Ok(())
    }
}

impl Worker for Attendance {
    const NAME: WorkerName = WorkerName::Attendance;

    async fn handle(&self, batch: &worker::Batch) -> Result<Handled, Failure> {
        apply(&self.db, &batch.replays(), |tx| async move { self.apply(&tx, batch.events()).await }).await?;
        Ok(Outcome::Applied.into())
    }
}

/// What a batch of events comes to: each row once, since a statement may not touch one twice, and in order, so that two
/// transactions cannot wait for each other.
#[derive(Default)]
struct Batch {
    intervals: BTreeMap<(Person, String), Interval>,
    learned: BTreeMap<i64, Learned>,
    people: BTreeMap<Person, Said>,
}

/// What joins and leaves say of one connection.
#[derive(Default)]
struct Interval {
    joined_at: Option<DateTime<Utc>>,
    joined_at_ms: Option<i64>,
    left: Option<(DateTime<Utc>, Option<String>)>,
}

impl Batch {
    fn of<'a>(events: impl Iterator<Item = (i64, &'a Event)>) -> Self {
        let mut batch = Self::default();
        for (session, event) in events {
            batch.learned.entry(session).or_default().hear(event);
            match &event.change {
                Change::Joined(connection) => batch.joined(session, event, connection),
                Change::Left(connection, departure) => batch.left(session, event, connection, departure),
                // The catalogue gives the others to other workers.
                Change::RoomCreated | Change::RoomStarted | Change::RoomEnded | Change::Recording(_) => {}
            }
        }
        batch
    }

    fn joined(&mut self, session: i64, event: &Event, connection: &Connection) {
        let joined_at = connection.joined_at.unwrap_or(event.at);
        self.interval(session, event, connection).joined(joined_at, connection.joined_at_ms);
        self.learned.entry(session).or_default().started(joined_at);
    }

    fn left(&mut self, session: i64, event: &Event, connection: &Connection, departure: &Departure) {
        let interval = self.interval(session, event, connection);
        interval.left = interval.left.take().max(Some((departure.at, departure.reason.clone())));
        if let Some(joined_at) = connection.joined_at {
            interval.joined(joined_at, connection.joined_at_ms);
            self.learned.entry(session).or_default().started(joined_at);
        }
    }

    fn interval(&mut self, session: i64, event: &Event, connection: &Connection) -> &mut Interval {
        let person = (session, connection.user_id.clone());
        let said = self.people.entry(person.clone()).or_default();
        said.hear(event.at, connection.name.as_ref(), connection.is_admin);
        self.intervals.entry((person, connection.participant_sid.clone())).or_default()
    }
}

impl Interval {
    fn joined(&mut self, at: DateTime<Utc>, at_ms: Option<i64>) {
        self.joined_at = Some(self.joined_at.map_or(at, |known| known.min(at)));
        self.joined_at_ms = [self.joined_at_ms, at_ms].into_iter().flatten().min();
    }
}

async fn save(tx: &DatabaseTransaction, intervals: BTreeMap<(Person, String), Interval>) -> Result<(), Failure> {
    let rows: Vec<_> = intervals.into_iter().map(|(key, interval)| row(key, interval)).collect();
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        let merged = interval::Entity::insert_many(rows.to_vec()).on_conflict(merge());
        merged.exec_without_returning(tx).await?;
    }
    Ok(())
}

fn row(((session_id, user_id), participant_sid): (Person, String), interval: Interval) -> interval::ActiveModel {
    let (left_at, reason) = interval.left.unzip();
    interval::ActiveModel {
        session_id: Set(session_id),
        user_id: Set(user_id),
        participant_sid: Set(participant_sid),
        joined_at: Set(interval.joined_at),
        joined_at_ms: Set(interval.joined_at_ms),
        left_at: Set(left_at),
        disconnect_reason: Set(reason.flatten()),
        ..Default::default()
    }
}

/// What is known and what is new come to the same whichever of them was first: the earliest start, the latest end.
fn merge() -> OnConflict {
    use interval::Column::{DisconnectReason, JoinedAt, JoinedAtMs, LeftAt};
    use sea_orm::sea_query::ExprTrait as _;
    let known = |column: interval::Column| Expr::col((interval::Entity, column));
    let new = |column: interval::Column| Expr::col(("excluded", column));
    // Each falls back on the other: SQLite's MIN and MAX are null where one argument is.
    let both = |column| {
        let known_or_new = Expr::from(Func::coalesce([known(column), new(column)]));
        [known_or_new, Expr::from(Func::coalesce([new(column), known(column)]))]
    };
    let least = |column| Func::least(both(column));
    let greatest = |column| Func::greatest(both(column));
    let new_is_later = Condition::all()
        .add(new(LeftAt).is_not_null())
        .add(Condition::any().add(known(LeftAt).is_null()).add(new(LeftAt).gt(known(LeftAt))));
    let reason = CaseStatement::new().case(new_is_later, new(DisconnectReason)).finally(known(DisconnectReason));
    OnConflict::columns([interval::Column::SessionId, interval::Column::UserId, interval::Column::ParticipantSid])
        .value(JoinedAt, least(JoinedAt))
        .value(JoinedAtMs, least(JoinedAtMs))
        .value(LeftAt, greatest(LeftAt))
        .value(DisconnectReason, reason)
        .to_owned()
}
