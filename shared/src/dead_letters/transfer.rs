//! Dead letters out of a database and into another one, as lines of JSON that hold everything.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait, DatabaseConnection,
    DatabaseTransaction, DbErr, EntityTrait as _, QueryFilter as _, QuerySelect as _,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::change::record;
use super::find::{Letter, letters};
use super::limits::{
    BadValue, MAX_REPLAYS, NAME, REPLAYS, WORDS, check_body, check_name, check_source, check_text, check_time, value,
};
use super::record::ROWS_PER_STATEMENT;
use super::subject::without_nul;
use super::walk::{PAGE_ROWS, Walk};
use super::{By, Filter, State, Subject};
use crate::erasure::{Erased, Person, Register};
use crate::event::WorkerName;
use crate::queue::MAX_ID;
use crate::store::entity::dead_letter::{self, Column, Entity};
use crate::store::entity::{dead_letter_change as change, dead_letter_failure as failure};
use crate::store::transaction;

/// The format of the lines.
const FORMAT: u32 = 1;

/// A dead letter with its history, as a line holds it. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the columns, see store::entity::dead_letter")]
pub struct Record {
    /// The format of the line.
    pub format: u32,
    /// In the database that it came from.
    pub id: i64,
    pub message_id: String,
    pub worker: String,
    pub event: String,
    pub event_id: Option<String>,
    pub source: String,
    pub room_id: Option<String>,
    pub user_id: Option<String>,
    pub traceparent: Option<String>,
    pub received_at: DateTime<Utc>,
    pub state: String,
    pub kind: String,
    pub cause: String,
    pub error: String,
    pub attempts: i32,
    pub host: Option<String>,
    pub first_failed_at: DateTime<Utc>,
    pub last_failed_at: DateTime<Utc>,
    pub replays: i32,
    pub replayed_at: Option<DateTime<Utc>>,
    pub replayed_by: Option<String>,
    pub replay_run: Option<String>,
    pub applied_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub headers: Value,
    /// The body; in base64 instead, where it is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// The same for the body as it came, where it was edited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_body_base64: Option<String>,
    pub failures: Vec<Failure>,
    pub changes: Vec<Change>,
}

/// One time that it died: see [`failure`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the columns")]
pub struct Failure {
    pub failed_at: DateTime<Utc>,
    pub replay: i32,
    pub kind: String,
    pub cause: String,
    pub error: String,
    pub attempts: i32,
    pub host: Option<String>,
}

/// What somebody did with it: see [`change`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the fields are the columns")]
pub struct Change {
    pub changed_at: DateTime<Utc>,
    pub changed_by: String,
    pub change: String,
    pub reason: Option<String>,
}

/// Why a line is not a dead letter.
#[derive(Debug, thiserror::Error)]
pub enum BadLine {
    /// It is not JSON, or not of this shape.
    #[error("it is no exported dead letter: {0}")]
    Shape(#[from] serde_json::Error),
    /// It is another Rollcall's.
    #[error(
        "it is of format {0}, and this Rollcall reads format {FORMAT}: import it with the Rollcall that exported it"
    )]
    Format(u64),
    /// A value that cannot be.
    #[error(transparent)]
    Value(#[from] BadValue),
}

impl Record {
    /// Reads a line. A body has `max_body` bytes at most, as the ingress takes none that is longer.
    ///
    /// # Errors
    /// See [`BadLine`].
    pub fn parse(line: &str, max_body: usize) -> Result<Self, BadLine> {
        #[derive(Deserialize)]
        struct OfFormat {
            format: u64,
        }
        let OfFormat { format } = serde_json::from_str(line)?;
        if format != u64::from(FORMAT) {
            return Err(BadLine::Format(format));
        }
        let record: Self = serde_json::from_str(line)?;
        record.check_names()?;
        record.check_numbers()?;
        record.check_bodies(max_body)?;
        record.check_history()?;
        Ok(Self { message_id: record.message_id()?.to_string(), ..record })
    }

    /// However it is spelt.
    fn message_id(&self) -> Result<Uuid, BadValue> {
        self.message_id.parse().map_err(|_| value("message_id", &self.message_id, "a UUID"))
    }

    fn check_names(&self) -> Result<(), BadValue> {
        self.worker
            .parse::<WorkerName>()
            .map_err(|_| value("worker", &self.worker, WorkerName::ALL.map(WorkerName::as_str).join(", ")))?;
        if !STATES.map(State::as_str).contains(&self.state.as_str()) {
            return Err(value("state", &self.state, STATES.map(State::as_str).join(", ")));
        }
        check_kind(&self.kind)?;
        check_name("event", &self.event)?;
        check_source(&self.source)?;
        check_text("cause", &self.cause, NAME)?;
        check_text("error", &self.error, WORDS)?;
        let optional = [
            ("event_id", &self.event_id, MAX_ID),
            ("room_id", &self.room_id, MAX_ID),
            ("user_id", &self.user_id, MAX_ID),
            ("traceparent", &self.traceparent, NAME),
            ("host", &self.host, NAME),
            ("replayed_by", &self.replayed_by, NAME),
            ("replay_run", &self.replay_run, NAME),
        ];
        for (field, text, most) in optional {
            check_text(field, text.as_deref().unwrap_or_default(), most)?;
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<(), BadValue> {
        check_attempts(self.attempts)?;
        check_replays("replays", self.replays)?;
        let times = [
            ("received_at", Some(self.received_at)),
            ("first_failed_at", Some(self.first_failed_at)),
            ("last_failed_at", Some(self.last_failed_at)),
            ("replayed_at", self.replayed_at),
            ("applied_at", self.applied_at),
        ];
        times.into_iter().try_for_each(|(field, at)| at.map_or(Ok(()), |at| check_time(field, at)))
    }

    fn check_bodies(&self, max_body: usize) -> Result<(), BadValue> {
        let body = self.body()?.ok_or_else(|| value("body", "nothing", "there, as body or body_base64"))?;
        check_body("body", body.len(), max_body)?;
        let original = bytes("original_body_base64", self.original_body.as_ref(), self.original_body_base64.as_ref())?;
        check_body("original_body", original.map_or(0, |body| body.len()), max_body)?;
        check_body("headers", self.headers.to_string().len(), MAX_HEADERS)
    }

    fn check_history(&self) -> Result<(), BadValue> {
        let mut failed_at = HashSet::new();
        for failure in &self.failures {
            check_kind(&failure.kind)?;
            check_text("cause", &failure.cause, NAME)?;
            check_text("error", &failure.error, WORDS)?;
            check_text("host", failure.host.as_deref().unwrap_or_default(), NAME)?;
            check_attempts(failure.attempts)?;
            check_replays("replay", failure.replay)?;
            check_time("failed_at", failure.failed_at)?;
            // As exactly as any database keeps it.
            if !failed_at.insert(failure.failed_at.timestamp_micros()) {
                return Err(value("failed_at", failure.failed_at, "another in each of its failures"));
            }
        }
        for change in &self.changes {
            check_text("change", &change.change, NAME)?;
            check_text("changed_by", &change.changed_by, NAME)?;
            check_text("reason", change.reason.as_deref().unwrap_or_default(), WORDS)?;
            check_time("changed_at", change.changed_at)?;
        }
        Ok(())
    }

    /// The body; `None` where a line has none.
    fn body(&self) -> Result<Option<Vec<u8>>, BadValue> {
        bytes("body_base64", self.body.as_ref(), self.body_base64.as_ref())
    }

    /// Whom it is about, by its body, by that as it came, and by what stands beside them; and when what it tells of them began.
    fn people(&self) -> impl Iterator<Item = (Person, DateTime<Utc>)> {
        let original = bytes("original_body_base64", self.original_body.as_ref(), self.original_body_base64.as_ref());
        let bodies = [self.body().ok().flatten(), original.ok().flatten()].into_iter().flatten();
        let subject = |body: Vec<u8>| {
            let subject = Subject::of(&self.source, &body, self.received_at).ok()?;
            Some((subject.user_id?, subject.began_at))
        };
        let of_bodies: Vec<_> = bodies.filter_map(subject).collect();
        let beside = self.user_id.clone().filter(|_| of_bodies.is_empty()).map(|user_id| (user_id, self.received_at));
        of_bodies.into_iter().chain(beside).map(|(user_id, began_at)| ((self.source.clone(), user_id), began_at))
    }

    fn is_about(&self, erased: &Erased) -> bool {
        self.people().any(|(person, began_at)| erased.has(&person, began_at))
    }

    /// The row that it becomes here.
    fn row(&self, now: DateTime<Utc>) -> Result<dead_letter::ActiveModel, BadValue> {
        let text = |text: &str| Set(without_nul(text));
        let some_text = |text: &Option<String>| Set(text.as_deref().map(without_nul));
        let original = bytes("original_body_base64", self.original_body.as_ref(), self.original_body_base64.as_ref())?;
        Ok(dead_letter::ActiveModel {
            id: sea_orm::ActiveValue::NotSet,
            message_id: text(&self.message_id),
            worker: text(&self.worker),
            event: text(&self.event),
            event_id: some_text(&self.event_id),
            source: text(&self.source),
            room_id: some_text(&self.room_id),
            user_id: some_text(&self.user_id),
            traceparent: some_text(&self.traceparent),
            received_at: Set(self.received_at),
            state: text(State::Dead.as_str()),
            kind: text(&self.kind),
            cause: text(&self.cause),
            error: text(&self.error),
            attempts: Set(self.attempts),
            host: some_text(&self.host),
            first_failed_at: Set(self.first_failed_at),
            last_failed_at: Set(self.last_failed_at),
            replays: Set(self.replays),
            replayed_at: Set(self.replayed_at),
            replayed_by: some_text(&self.replayed_by),
            // A run of another installation.
            replay_run: Set(None),
            applied_at: Set(None),
            created_at: Set(now),
            updated_at: Set(now),
            headers: text(&self.headers.to_string()),
            body: Set(self.body()?.unwrap_or_default()),
            original_body: Set(original),
        })
    }
}

/// What the column `kind` takes.
const KINDS: [&str; 4] = ["permanent", "exhausted", "poison", "purged"];

/// What a dead letter of an export has become.
const STATES: [State; 4] = [State::Dead, State::Replaying, State::Applied, State::Dropped];
/// The longest headers as JSON, in bytes: in a frame of a broker they have 128 KiB, and JSON takes up to six for one.
const MAX_HEADERS: usize = 1 << 20;

fn check_kind(kind: &str) -> Result<(), BadValue> {
    if KINDS.contains(&kind) { Ok(()) } else { Err(value("kind", kind, KINDS.join(", "))) }
}

fn check_attempts(attempts: i32) -> Result<(), BadValue> {
    if attempts >= 0 { Ok(()) } else { Err(value("attempts", attempts, "a number from 0")) }
}

fn check_replays(field: &'static str, replays: i32) -> Result<(), BadValue> {
    if (0..MAX_REPLAYS).contains(&replays) { Ok(()) } else { Err(value(field, replays, REPLAYS)) }
}

/// The bytes that a text is, or what base64 stands for; none where there is neither.
fn bytes(field: &'static str, text: Option<&String>, base64: Option<&String>) -> Result<Option<Vec<u8>>, BadValue> {
    match (text, base64) {
        (Some(text), _) => Ok(Some(text.clone().into_bytes())),
        (None, Some(base64)) => BASE64.decode(base64).map(Some).map_err(|_| value(field, base64, "base64")),
        (None, None) => Ok(None),
    }
}

/// The bytes as text; or else in base64.
fn text_or_base64(bytes: Vec<u8>) -> (Option<String>, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(BASE64.encode(error.as_bytes()))),
    }
}

impl From<Letter> for Record {
    fn from(Letter { row, failures, changes }: Letter) -> Self {
        let (body, body_base64) = text_or_base64(row.body);
        let (original_body, original_body_base64) = row.original_body.map(text_or_base64).unwrap_or_default();
        Self {
            format: FORMAT,
            id: row.id,
            message_id: row.message_id,
            worker: row.worker,
            event: row.event,
            event_id: row.event_id,
            source: row.source,
            room_id: row.room_id,
            user_id: row.user_id,
            traceparent: row.traceparent,
            received_at: row.received_at,
            state: row.state,
            kind: row.kind,
            cause: row.cause,
            error: row.error,
            attempts: row.attempts,
            host: row.host,
            first_failed_at: row.first_failed_at,
            last_failed_at: row.last_failed_at,
            replays: row.replays,
            replayed_at: row.replayed_at,
            replayed_by: row.replayed_by,
            replay_run: row.replay_run,
            applied_at: row.applied_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
            headers: serde_json::from_str(&row.headers).unwrap_or(Value::String(row.headers)),
            body,
            body_base64,
            original_body,
            original_body_base64,
            failures: failures.into_iter().map(Failure::from).collect(),
            changes: changes.into_iter().map(Change::from).collect(),
        }
    }
}

impl From<failure::Model> for Failure {
    fn from(failure: failure::Model) -> Self {
        let failure::Model { dead_letter_id: _, failed_at, replay, kind, cause, error, attempts, host } = failure;
        Self { failed_at, replay, kind, cause, error, attempts, host }
    }
}

impl From<change::Model> for Change {
    fn from(change: change::Model) -> Self {
        let change::Model { id: _, dead_letter_id: _, changed_at, changed_by, change, reason } = change;
        Self { changed_at, changed_by, change, reason }
    }
}

/// Dead letters on their way out, in the order of their ids.
pub struct Export {
    db: DatabaseConnection,
    walk: Walk,
}

impl Export {
    /// Begins with the first of `filter`.
    ///
    /// # Errors
    /// The database.
    pub async fn new(db: &DatabaseConnection, filter: &Filter) -> Result<Self, DbErr> {
        Ok(Self { db: db.clone(), walk: Walk::new(db, filter, PAGE_ROWS).await? })
    }

    /// Some more; none at the end.
    ///
    /// # Errors
    /// The database.
    pub async fn next(&mut self) -> Result<Vec<Record>, DbErr> {
        loop {
            let ids = self.walk.next(&self.db).await?;
            let found = letters(&self.db, &ids).await?;
            // All that were found may be gone since.
            if ids.is_empty() || !found.is_empty() {
                return Ok(found.into_iter().map(Record::from).collect());
            }
        }
    }
}

/// What has become of records that were to come in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// They are dead letters now.
    pub new: u64,
    /// They were there already, by their message ids.
    pub known: u64,
    /// They are about people who were erased, and are left out.
    pub erased: u64,
}

/// Takes records in, all of them or none: they are dead, with the history that they had.
///
/// # Errors
/// The database.
pub async fn import(db: &DatabaseConnection, records: &[Record], by: &By) -> Result<Imported, DbErr> {
    transaction(db, |tx| async move {
        let (mut known, erased) = (known(&*tx, records).await?, erased(&tx, records).await?);
        let mut imported = Imported::default();
        let mut ids = Vec::new();
        let now = Utc::now();
        for letter in records {
            if letter.is_about(&erased) {
                imported.erased += 1;
            } else if known.insert(letter.message_id.clone()) {
                ids.push(insert(&tx, letter, now).await?);
                imported.new += 1;
            } else {
                imported.known += 1;
            }
        }
        record(&tx, Condition::all().add(Column::Id.is_in(ids)), "imported", by, now).await?;
        Ok(imported)
    })
    .await
}

/// What [`import`] would do.
///
/// # Errors
/// The database.
pub async fn would_import(db: &DatabaseConnection, records: &[Record]) -> Result<Imported, DbErr> {
    transaction(db, |tx| async move {
        let (mut known, erased) = (known(&*tx, records).await?, erased(&tx, records).await?);
        let left: Vec<_> = records.iter().filter(|record| !record.is_about(&erased)).collect();
        let new = left.iter().filter(|record| known.insert(record.message_id.clone())).count();
        let count = |count: usize| count as u64;
        Ok(Imported { new: count(new), known: count(left.len() - new), erased: count(records.len() - left.len()) })
    })
    .await
}

/// Those of the people whom these are about who were erased.
async fn erased(tx: &DatabaseTransaction, records: &[Record]) -> Result<Erased, DbErr> {
    Register::default().of(tx, records.iter().flat_map(|record| record.people().map(|(person, _)| person))).await
}

/// Those of the messages that are dead letters already.
async fn known(db: &impl ConnectionTrait, records: &[Record]) -> Result<HashSet<String>, DbErr> {
    let ids = records.iter().map(|record| record.message_id.as_str());
    let known = Entity::find().select_only().column(Column::MessageId).filter(Column::MessageId.is_in(ids));
    Ok(known.into_tuple().all(db).await?.into_iter().collect())
}

async fn insert(tx: &DatabaseTransaction, letter: &Record, now: DateTime<Utc>) -> Result<i64, DbErr> {
    let row = letter.row(now).map_err(|error| DbErr::Type(error.to_string()))?;
    let dead_letter_id = row.insert(tx).await?.id;
    let failures = letter.failures.iter().map(|failed| failure::ActiveModel {
        dead_letter_id: Set(dead_letter_id),
        failed_at: Set(failed.failed_at),
        replay: Set(failed.replay),
        kind: Set(without_nul(&failed.kind)),
        cause: Set(without_nul(&failed.cause)),
        error: Set(without_nul(&failed.error)),
        attempts: Set(failed.attempts),
        host: Set(failed.host.as_deref().map(without_nul)),
    });
    for failures in failures.collect::<Vec<_>>().chunks(ROWS_PER_STATEMENT) {
        failure::Entity::insert_many(failures.to_vec()).exec_without_returning(tx).await?;
    }
    let changes = letter.changes.iter().map(|changed| change::ActiveModel {
        id: sea_orm::ActiveValue::NotSet,
        dead_letter_id: Set(dead_letter_id),
        changed_at: Set(changed.changed_at),
        changed_by: Set(without_nul(&changed.changed_by)),
        change: Set(without_nul(&changed.change)),
        reason: Set(changed.reason.as_deref().map(without_nul)),
    });
    for changes in changes.collect::<Vec<_>>().chunks(ROWS_PER_STATEMENT) {
        change::Entity::insert_many(changes.to_vec()).exec_without_returning(tx).await?;
    }
    Ok(dead_letter_id)
}
