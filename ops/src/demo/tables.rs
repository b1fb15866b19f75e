//! What the tables say, in the form in which it can be held against what was played.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chrono::{DateTime, SecondsFormat, Utc};
use rollcall_ops::standin::webhook::Room;
use rollcall_shared::store::entity::{
    course, course_live_session, course_staff, live_session_interval, live_session_recording, live_session_user,
};
use sea_orm::{ActiveValue::Set, DatabaseConnection, DbErr, EntityTrait};
use sha2::{Digest, Sha256};

use super::{class, video};

/// The server's name in the demo's settings.
pub(super) const SOURCE: &str = "demo";

/// One session of one room.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SessionKey {
    pub(super) room_id: String,
    pub(super) sid: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) parent_room_id: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) ended_at: Option<DateTime<Utc>>,
    /// By user id.
    pub(super) people: BTreeMap<String, Person>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) name: Option<String>,
    pub(super) role: String,
    pub(super) entered_at: Option<DateTime<Utc>>,
    pub(super) exited_at: Option<DateTime<Utc>>,
    pub(super) is_online: bool,
    pub(super) total_seconds: i64,
    pub(super) join_count: i32,
}

/// A recording and its files, as far as they can be known beforehand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Recording {
    pub(super) status: String,
    pub(super) kind: Option<String>,
    pub(super) title: Option<String>,
    pub(super) file_size: Option<i64>,
    pub(super) whole_seconds: Option<i64>,
    pub(super) resolution: Option<(i32, i32)>,
    /// As the row has it.
    pub(super) sha256: Option<String>,
    /// Of the file that lies in the storage.
    pub(super) sha256_of_file: Option<String>,
    /// Whether a JPEG lies where the row says.
    pub(super) has_thumbnail: bool,
}

/// What can be held against the truth.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Played {
    pub(super) sessions: BTreeMap<SessionKey, Session>,
    /// By record id.
    pub(super) recordings: BTreeMap<String, Recording>,
}

/// One connection, from and to.
pub(super) type Interval = (DateTime<Utc>, DateTime<Utc>);

/// What the tables say, and what only the report shows.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) played: Played,
    pub(super) recordings: Vec<live_session_recording::Model>,
    /// By session and person.
    pub(super) intervals: BTreeMap<(SessionKey, String), Vec<Interval>>,
}

impl SessionKey {
    pub(super) fn of(room: &Room) -> Self {
        Self { room_id: room.room_id.clone(), sid: Some(room.sid.clone()) }
    }
}

/// Does what an LMS does ahead of a class: the course, who teaches it, and the session, which has no sid yet.
pub(super) async fn announce_class(db: &DatabaseConnection) -> Result<(), DbErr> {
    let course =
        course::ActiveModel { slug: Set("physics".into()), title: Set(Some("Physics".into())), ..Default::default() };
    let course_id = course::Entity::insert(course).exec(db).await?.last_insert_id;
    let teacher = course_staff::ActiveModel { course_id: Set(course_id), user_id: Set(class::TEACHER.0.into()) };
    course_staff::Entity::insert(teacher).exec_without_returning(db).await?;
    let session = course_live_session::ActiveModel {
        source: Set(SOURCE.into()),
        room_id: Set(class::ROOM_ID.into()),
        course_id: Set(Some(course_id)),
        subject: Set(Some(class::SUBJECT.into())),
        ..Default::default()
    };
    course_live_session::Entity::insert(session).exec_without_returning(db).await?;
    Ok(())
}

impl Found {
    /// Reads every table; `media` is the folder of the storage.
    pub(super) async fn read(db: &DatabaseConnection, media: &Path) -> Result<Self> {
        let sessions = course_live_session::Entity::find().all(db).await?;
        let keys: BTreeMap<i64, SessionKey> = sessions
            .iter()
            .map(|row| (row.id, SessionKey { room_id: row.room_id.clone(), sid: row.room_sid.clone() }))
            .collect();
        let key_of = |session_id: i64| keys.get(&session_id).cloned().context("a row of a session that is not there");

        let mut played = Played::default();
        for row in &sessions {
            let session = Session {
                parent_room_id: row.parent_room_id.clone(),
                subject: row.subject.clone(),
                started_at: row.started_at,
                ended_at: row.ended_at,
                people: BTreeMap::new(),
            };
            played.sessions.insert(key_of(row.id)?, session);
        }
        for row in live_session_user::Entity::find().all(db).await? {
            if let Some(session) = played.sessions.get_mut(&key_of(row.session_id)?) {
                session.people.insert(row.user_id.clone(), Person::of(row));
            }
        }
        let recordings = live_session_recording::Entity::find().all(db).await?;
        for row in &recordings {
            played.recordings.insert(row.record_id.clone(), Recording::of(row, media).await);
        }
        let mut intervals: BTreeMap<_, Vec<Interval>> = BTreeMap::new();
        for row in live_session_interval::Entity::find().order_by_id_asc().all(db).await? {
            let key = key_of(row.session_id)?;
            let ended_at = played.sessions.get(&key).and_then(|session| session.ended_at);
            if let (Some(from), Some(to)) = (row.joined_at, row.left_at.or(ended_at)) {
                intervals.entry((key, row.user_id)).or_default().push((from, to));
            }
        }
        Ok(Self { played, recordings, intervals })
    }
}

impl Person {
    fn of(row: live_session_user::Model) -> Self {
        Self {
            name: row.name,
            role: row.role,
            entered_at: row.entered_at,
            exited_at: row.exited_at,
            is_online: row.is_online,
            total_seconds: row.total_seconds,
            join_count: row.join_count,
        }
    }
}

impl Recording {
    /// The demo's recording as it should be archived, when its file is `video`.
    pub(super) fn archived(video: &[u8]) -> Self {
        let sha256 = Some(sha256(video));
        Self {
            status: "ready".into(),
            kind: Some("video".into()),
            title: Some(class::TITLE.into()),
            file_size: video.len().try_into().ok(),
            whole_seconds: Some(video::SECONDS),
            resolution: Some(video::RESOLUTION),
            sha256: sha256.clone(),
            sha256_of_file: sha256,
            has_thumbnail: true,
        }
    }

    async fn of(row: &live_session_recording::Model, media: &Path) -> Self {
        let read = async |key: &Option<String>| tokio::fs::read(stored(media, key.as_deref()?)).await.ok();
        let thumbnail = read(&row.thumbnail_key).await;
        Self {
            status: row.status.clone(),
            kind: row.recording_type.clone(),
            title: row.title.clone(),
            file_size: row.file_size,
            #[expect(clippy::cast_possible_truncation, reason = "the length of a recording")]
            whole_seconds: row.duration_seconds.map(|seconds| seconds.round() as i64),
            resolution: row.width.zip(row.height),
            sha256: row.sha256.clone(),
            sha256_of_file: read(&row.file_key).await.map(|bytes| sha256(&bytes)),
            has_thumbnail: thumbnail.is_some_and(|bytes| bytes.starts_with(&[0xff, 0xd8, 0xff])),
        }
    }
}

/// Where the storage keeps what it calls `key`.
pub(super) fn stored(media: &Path, key: &str) -> PathBuf {
    media.join(key)
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

impl Played {
    /// Where `found` is not what was played, a line each.
    pub(super) fn differences(&self, found: &Self) -> Vec<String> {
        let (played, found) = (self.lines(), found.lines());
        let mut names: Vec<&String> = played.keys().chain(found.keys()).collect();
        names.sort_unstable();
        names.dedup();
        let differs = |name: &&String| played.get(*name) != found.get(*name);
        let line = |name: &String| match (played.get(name), found.get(name)) {
            (Some(played), Some(found)) => format!("{name}: the tables say {found}, played was {played}"),
            (Some(played), None) => format!("{name}: not in the tables, played was {played}"),
            (None, found) => format!("{name}: the tables say {}, never played", found.map_or("?", String::as_str)),
        };
        names.into_iter().filter(differs).map(line).collect()
    }

    /// Everything there is to compare: what it is, and its value.
    fn lines(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        for (key, session) in &self.sessions {
            let room = format!("room {} ({})", key.room_id, key.sid.as_deref().unwrap_or("no sid"));
            let mut line = |name: &str, value: String| lines.insert(format!("{room}, {name}"), value);
            line("parent_room_id", text(session.parent_room_id.as_deref()));
            line("subject", text(session.subject.as_deref()));
            line("started_at", time(session.started_at));
            line("ended_at", time(session.ended_at));
            for (user_id, person) in &session.people {
                let mut line = |name: &str, value: String| line(&format!("person {user_id}, {name}"), value);
                line("name", text(person.name.as_deref()));
                line("role", person.role.clone());
                line("entered_at", time(person.entered_at));
                line("exited_at", time(person.exited_at));
                line("is_online", person.is_online.to_string());
                line("total_seconds", person.total_seconds.to_string());
                line("join_count", person.join_count.to_string());
            }
        }
        for (record_id, recording) in &self.recordings {
            let mut line = |name: &str, value: String| lines.insert(format!("recording {record_id}, {name}"), value);
            line("status", recording.status.clone());
            line("recording_type", text(recording.kind.as_deref()));
            line("title", text(recording.title.as_deref()));
            line("file_size", format!("{:?}", recording.file_size));
            line("duration in whole seconds", format!("{:?}", recording.whole_seconds));
            line("width and height", format!("{:?}", recording.resolution));
            line("sha256", text(recording.sha256.as_deref()));
            line("sha256 of the stored file", text(recording.sha256_of_file.as_deref()));
            line("has a thumbnail", recording.has_thumbnail.to_string());
        }
        lines
    }
}

fn text(value: Option<&str>) -> String {
    value.unwrap_or("nothing").to_owned()
}

fn time(value: Option<DateTime<Utc>>) -> String {
    value.map_or("nothing".to_owned(), |at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_what_differs() {
        let person = Person {
            name: Some("N".into()),
            role: "participant".into(),
            entered_at: None,
            exited_at: None,
            is_online: false,
            total_seconds: 10,
            join_count: 1,
        };
        let session = |seconds: i64| Session {
            parent_room_id: None,
            subject: None,
            started_at: Some(DateTime::UNIX_EPOCH),
            ended_at: None,
            people: BTreeMap::from([("7".to_owned(), Person { total_seconds: seconds, ..person.clone() })]),
        };
        let key = SessionKey { room_id: "r".into(), sid: Some("S".into()) };
        let played = Played { sessions: BTreeMap::from([(key.clone(), session(10))]), recordings: BTreeMap::new() };
        let found = Played { sessions: BTreeMap::from([(key, session(9))]), recordings: BTreeMap::new() };
        assert_eq!(played.differences(&played), Vec::<String>::new());
        assert_eq!(
            played.differences(&found),
            ["room r (S), person 7, total_seconds: the tables say 9, played was 10"]
        );
        let nothing = Played::default();
        assert!(played.differences(&nothing).iter().all(|line| line.contains("not in the tables")));
        assert!(nothing.differences(&played).iter().all(|line| line.contains("never played")));
    }
}
