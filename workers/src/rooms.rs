//! Rooms: when a session's room opened and when it ended, and what that means for everybody in it.
//!
//! A session ends once: `room_finished` and `session_ended` come in either order, a second apart at most, and the later
//! counts. A second start means that the media server crashed and took everybody's connections along.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use rollcall_shared::config::{Settings, UnknownSessions};
use rollcall_shared::event::{Change, Event, WorkerName};
use rollcall_shared::store::entity::live_session_start as start;
use sea_orm::{ActiveValue::Set, DatabaseConnection, DatabaseTransaction, EntityTrait as _, TryInsertResult};

use crate::presence;
use crate::sessions::{self, Learned};
use crate::transaction::apply;
use crate::worker::{self, Failure, Handled, Outcome, Worker};

/// The worker.
#[derive(Debug)]
pub struct Rooms {
    db: DatabaseConnection,
    unknown_sessions: UnknownSessions,
}

impl Rooms {
    /// A worker on this database.
    pub fn new(settings: &Settings, db: DatabaseConnection) -> Self {
        Self { db, unknown_sessions: settings.sessions.unknown }
    }

    async fn apply(&self, tx: &DatabaseTransaction, events: &[Event]) -> Result<(), Failure> {
        let rooms: Vec<_> = events.iter().map(|event| &event.room).collect();
        let ids = sessions::resolve(tx, &rooms, self.unknown_sessions).await?;
        let mut sessions = sessions::lock(tx, &ids).await?;

        let batch = Batch::of(ids.into_iter().zip(events));
        let mut moved = restarted(tx, batch.starts).await?;
        for (id, learned) in batch.learned {
            if let Some(session) = sessions.get_mut(&id) {
                let ended_at = session.ended_at;
                learned.save(tx, session).await?;
                if session.ended_at != ended_at {
                    moved.insert(id);
                }
            }
        }
        // Ends and crashes decide about intervals whose leave is missing.
        sessions.retain(|id, _| moved.contains(id));
        presence::derive_all(tx, &sessions).await
    }
}

impl Worker for Rooms {
    const NAME: WorkerName = WorkerName::Rooms;

    async fn handle(&self, batch: &worker::Batch) -> Result<Handled, Failure> {
        apply(&self.db, &batch.replays(), |tx| async move { self.apply(&tx, batch.events()).await }).await?;
        Ok(Outcome::Applied.into())
    }
}

/// What a batch of events comes to.
#[derive(Default)]
struct Batch {
    learned: BTreeMap<i64, Learned>,
    starts: BTreeSet<(i64, DateTime<Utc>)>,
}

impl Batch {
    fn of<'a>(events: impl Iterator<Item = (i64, &'a Event)>) -> Self {
        let mut batch = Self::default();
        for (session, event) in events {
            let learned = batch.learned.entry(session).or_default();
            learned.hear(event);
            match &event.change {
                Change::RoomStarted => {
                    learned.started(event.at);
                    batch.starts.insert((session, event.at));
                }
                Change::RoomEnded => learned.ended(event.at),
                // A room can be created long before anybody comes. The catalogue gives the others to other workers.
                Change::RoomCreated | Change::Joined(_) | Change::Left(..) | Change::Recording(_) => {}
            }
        }
        batch
    }
}

/// Keeps the starts, and says which sessions have one that was not known.
async fn restarted(tx: &DatabaseTransaction, starts: BTreeSet<(i64, DateTime<Utc>)>) -> Result<BTreeSet<i64>, Failure> {
    let mut sessions = BTreeSet::new();
    for (session, started_at) in starts {
        let row = start::ActiveModel { session_id: Set(session), started_at: Set(started_at) };
        let inserted = start::Entity::insert(row)
            .on_conflict_do_nothing_on([start::Column::SessionId, start::Column::StartedAt])
            .exec_without_returning(tx)
            .await?;
        if matches!(inserted, TryInsertResult::Inserted(_)) {
            sessions.insert(session);
        }
    }
    Ok(sessions)
}
