//! Which session an event belongs to, and what a session learns from its events.
//!
//! Data comes from [`Room`]s of events and goes to `course_live_session`. The order within a transaction is the same for
//! every worker: open what is missing (rooms locked, in order), then lock the sessions (in order), then change.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};

use chrono::{DateTime, Utc};
use rollcall_shared::config::UnknownSessions;
use rollcall_shared::event::{Event, Room, Sid};
use rollcall_shared::store::entity::course_live_session as session;
use sea_orm::sea_query::{LockType, NullOrdering, Order};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbBackend,
    EntityTrait as _, IntoActiveModel as _, QueryFilter as _, QueryOrder as _, QuerySelect as _, Statement,
};
use uuid::Uuid;

use crate::cause::Told;
use crate::sql::among;
use crate::worker::Failure;

/// What identifies a session in the events.
type Key<'a> = (&'a str, &'a str, &'a Sid);

fn key(room: &Room) -> Key<'_> {
    (&room.source, &room.room_id, &room.sid)
}

/// The ids of the sessions that these rooms are in, in the same order. Opens what is not there.
///
/// # Errors
/// The database; or a session is not there, and only the LMS may open one.
pub(crate) async fn resolve(
    tx: &DatabaseTransaction,
    rooms: &[&Room],
    unknown: UnknownSessions,
) -> Result<Vec<i64>, Failure> {
    let wanted: BTreeSet<Key<'_>> = rooms.iter().map(|room| key(room)).collect();
    let mut ids = find(tx, &wanted).await?;
    // A set is sorted, so that two transactions lock their rooms in the same order.
    for wanted in wanted {
        if let Entry::Vacant(missing) = ids.entry(wanted) {
            missing.insert(open(tx, wanted, unknown).await?);
        }
    }
    Ok(rooms.iter().map(|room| ids[&key(room)]).collect())
}

/// Those of the sessions that are there already.
async fn find<'a>(tx: &DatabaseTransaction, wanted: &BTreeSet<Key<'a>>) -> Result<BTreeMap<Key<'a>, i64>, Failure> {
    let mut by_sid = BTreeMap::new();
    for wanted in wanted {
        if let (source, room_id, Sid::Server(sid)) = *wanted {
            by_sid.insert((source.to_owned(), room_id.to_owned(), sid.clone()), *wanted);
        }
    }
    if by_sid.is_empty() {
        return Ok(BTreeMap::new());
    }
    let columns = [session::Column::Source, session::Column::RoomId, session::Column::RoomSid];
    let found = session::Entity::find().filter(among(columns, by_sid.keys().cloned())).all(tx).await?;
    let known = |found: session::Model| {
        let sid = found.room_sid.unwrap_or_default();
        by_sid.get(&(found.source, found.room_id, sid)).map(|wanted| (*wanted, found.id))
    };
    Ok(found.into_iter().filter_map(known).collect())
}

/// The session's id, under a lock of its room, so that two first events cannot both open or take one.
async fn open(tx: &DatabaseTransaction, wanted: Key<'_>, unknown: UnknownSessions) -> Result<i64, Failure> {
    let (source, room_id, sid) = wanted;
    lock_room(tx, source, room_id).await?;
    let there = match sid {
        // While we waited for the lock, somebody may have opened it.
        Sid::Server(_) => find(tx, &BTreeSet::from([wanted])).await?.remove(&wanted),
        Sid::MadeUp(_) => current(tx, source, room_id).await?,
    };
    if let Some(id) = there {
        return Ok(id);
    }
    let sid = match sid {
        Sid::Server(sid) => sid.clone(),
        // What a legacy sender made up may be the same for every session of the room.
        Sid::MadeUp(_) => format!("legacy-{}", Uuid::new_v4()),
    };
    if let Some(announced) = announced(tx, source, room_id).await? {
        let mut announced = announced.into_active_model();
        announced.room_sid = Set(Some(sid));
        return Ok(announced.update(tx).await?.id);
    }
    match unknown {
        UnknownSessions::Create => insert(tx, source, room_id, sid).await,
        UnknownSessions::Reject => Err(Failure::transient(Told::new(
            "session-unannounced",
            format!(
                "the LMS has not announced a session of room {room_id} of {source}, and sessions.unknown is reject"
            ),
        ))),
    }
}

/// SQLite has one writer at a time, and so no need of it.
async fn lock_room(tx: &DatabaseTransaction, source: &str, room_id: &str) -> Result<(), Failure> {
    if tx.get_database_backend() == DbBackend::Postgres {
        let sql = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
        let room = format!("{source}/{room_id}");
        tx.execute_raw(Statement::from_sql_and_values(DbBackend::Postgres, sql, [room.into()])).await?;
    }
    Ok(())
}

/// The room's open session that has begun, or else its last: what a legacy event belongs to.
async fn current(tx: &DatabaseTransaction, source: &str, room_id: &str) -> Result<Option<i64>, Failure> {
    let current = of_room(source, room_id)
        .filter(session::Column::RoomSid.is_not_null())
        .order_by_with_nulls(session::Column::EndedAt, Order::Desc, NullOrdering::First)
        .order_by_desc(session::Column::Id)
        .one(tx)
        .await?;
    // An ended session is the last only where the LMS has not announced the next.
    match current {
        Some(current) if current.ended_at.is_none() => Ok(Some(current.id)),
        current => Ok(if announced(tx, source, room_id).await?.is_some() { None } else { current.map(|row| row.id) }),
    }
}

/// The first of the room's sessions that the LMS has made ahead and no event has taken.
async fn announced(tx: &DatabaseTransaction, source: &str, room_id: &str) -> Result<Option<session::Model>, Failure> {
    let announced = of_room(source, room_id)
        .filter(session::Column::RoomSid.is_null())
        .filter(session::Column::EndedAt.is_null())
        .order_by_asc(session::Column::Id);
    Ok(announced.one(tx).await?)
}

async fn insert(tx: &DatabaseTransaction, source: &str, room_id: &str, sid: String) -> Result<i64, Failure> {
    let with_course = of_room(source, room_id)
        .filter(session::Column::CourseId.is_not_null())
        .order_by_desc(session::Column::Id)
        .one(tx)
        .await?;
    let inserted = session::ActiveModel {
        source: Set(source.to_owned()),
        room_id: Set(room_id.to_owned()),
        room_sid: Set(Some(sid)),
        course_id: Set(with_course.and_then(|session| session.course_id)),
        ..Default::default()
    };
    Ok(inserted.insert(tx).await?.id)
}

fn of_room(source: &str, room_id: &str) -> sea_orm::Select<session::Entity> {
    session::Entity::find().filter(session::Column::Source.eq(source)).filter(session::Column::RoomId.eq(room_id))
}

/// Locks the sessions and reads them.
///
/// This lock is what makes a person's row right: whoever changes a session, its starts or its intervals holds it until the
/// commit, so what the next one reads *in a later statement* is all there is. `FOR NO KEY UPDATE` and not `FOR SHARE`, under
/// which two would derive from what neither has committed; and not `FOR UPDATE`, which would wait for every foreign key
/// check of an insert. In order of their ids, so that two cannot wait for each other.
pub(crate) async fn lock(tx: &DatabaseTransaction, ids: &[i64]) -> Result<BTreeMap<i64, session::Model>, Failure> {
    let ids: BTreeSet<i64> = ids.iter().copied().collect();
    let mut select = session::Entity::find().filter(session::Column::Id.is_in(ids)).order_by_asc(session::Column::Id);
    if tx.get_database_backend() == DbBackend::Postgres {
        select = select.lock(LockType::NoKeyUpdate);
    }
    let locked = select.all(tx).await?;
    Ok(locked.into_iter().map(|session| (session.id, session)).collect())
}

/// What a batch tells of one session.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    pub(crate) started_at: Option<DateTime<Utc>>,
    pub(crate) ended_at: Option<DateTime<Utc>>,
    subject: Option<(DateTime<Utc>, String)>,
    parent_room_id: Option<String>,
}

impl Learned {
    /// What every event of the room may tell.
    pub(crate) fn hear(&mut self, event: &Event) {
        if let Some(title) = &event.room.title {
            let said = (event.at, title.clone());
            if self.subject.as_ref().is_none_or(|known| *known < said) {
                self.subject = Some(said);
            }
        }
        if self.parent_room_id.is_none() {
            self.parent_room_id.clone_from(&event.room.parent_room_id);
        }
    }

    /// The earliest start, or join.
    pub(crate) fn started(&mut self, at: DateTime<Utc>) {
        self.started_at = Some(self.started_at.map_or(at, |known| known.min(at)));
    }

    /// A session ends once, and is told so twice, a second apart: the later counts.
    pub(crate) fn ended(&mut self, at: DateTime<Utc>) {
        self.ended_at = self.ended_at.max(Some(at));
    }

    /// Merges what was learned into the locked session. Writes only what changed, which for most events is nothing.
    pub(crate) async fn save(self, tx: &DatabaseTransaction, session: &mut session::Model) -> Result<(), Failure> {
        let before = session.clone();
        if let Some(at) = self.started_at {
            session.started_at = Some(session.started_at.map_or(at, |known| known.min(at)));
        }
        session.ended_at = session.ended_at.max(self.ended_at);
        session.parent_room_id = session.parent_room_id.take().or(self.parent_room_id);
        if let Some((at, title)) = self.subject {
            let known = (session.subject_at, session.subject.clone());
            let is_the_lms_s = known.0.is_none() && known.1.is_some();
            if !is_the_lms_s && known < (Some(at), Some(title.clone())) {
                (session.subject_at, session.subject) = (Some(at), Some(title));
            }
        }
        if *session == before {
            return Ok(());
        }
        session.updated_at = Some(Utc::now());
        let changed = session::ActiveModel {
            id: sea_orm::ActiveValue::Unchanged(session.id),
            parent_room_id: Set(session.parent_room_id.clone()),
            subject: Set(session.subject.clone()),
            subject_at: Set(session.subject_at),
            started_at: Set(session.started_at),
            ended_at: Set(session.ended_at),
            updated_at: Set(session.updated_at),
            ..Default::default()
        };
        session::Entity::update(changed).exec(tx).await?;
        Ok(())
    }
}
