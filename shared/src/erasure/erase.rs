//! Erasing a person: in one transaction, so that it is done or is not.

use chrono::{DateTime, Utc};
use sea_orm::sea_query::{BinOper, Expr, ExprTrait as _, OnConflict, SelectStatement};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, ConnectionTrait as _, DatabaseConnection, DatabaseTransaction,
    DbBackend, DbErr, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    QueryTrait as _,
};
use uuid::Uuid;

use super::{hash, salt};
use crate::dead_letters::By;
use crate::plugnmeet::webhook;
use crate::store::entity::{
    course_live_session as session, course_staff as staff, dead_letter as letter, dead_letter_change as change,
    erased_person as erased, live_session_interval as interval, live_session_recording as recording,
    live_session_user as user,
};
use crate::store::transaction;

/// What is erased.
#[derive(Debug, Clone)]
pub struct Erasure {
    /// The LMS's id of the person.
    pub user_id: String,
    /// The servers on which it is this person: the names that the settings have for them.
    pub sources: Vec<String>,
    /// What becomes of the person's attendance.
    pub attendance: Attendance,
}

/// What becomes of an erased person's attendance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attendance {
    /// It is deleted.
    Delete,
    /// It stays, as that of nobody who is known: for counts.
    Pseudonymise,
}

/// What an erasure comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Rows of `live_session_user`: sessions that the person was in.
    pub sessions: u64,
    /// Rows of `live_session_interval`: connections.
    pub connections: u64,
    /// Dead letters about the person.
    pub dead_letters: u64,
    /// Dead letters about others that were about the person before somebody edited them.
    pub edited_dead_letters: u64,
    /// Rows of `course_staff`.
    pub staff: u64,
    /// Recordings of sessions that the person was in. They are not touched: whoever else was there is on them too.
    pub recordings: Vec<Recording>,
}

/// A recording on which the person may be seen or heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// The row's id.
    pub id: i64,
    /// Where the file lies in the storage.
    pub file_key: Option<String>,
}

impl Found {
    /// Whether nothing was found in any table.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// The servers of which there is a session or a dead letter.
///
/// # Errors
/// The database.
pub async fn sources(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let of_sessions = session::Entity::find().select_only().distinct().column(session::Column::Source);
    let of_letters = letter::Entity::find().select_only().distinct().column(letter::Column::Source);
    let mut sources: Vec<String> = of_sessions.into_tuple().all(db).await?;
    sources.extend(of_letters.into_tuple::<String>().all(db).await?);
    sources.sort_unstable();
    sources.dedup();
    Ok(sources)
}

impl Erasure {
    /// What there is to erase.
    ///
    /// # Errors
    /// The database.
    pub async fn look(&self, db: &DatabaseConnection) -> Result<Found, DbErr> {
        transaction(db, |tx| async move { self.find(&tx).await }).await
    }

    /// Erases it; what was there. Whatever begins after this moment is new.
    ///
    /// # Errors
    /// The database; nothing is erased then.
    pub async fn run(&self, db: &DatabaseConnection, by: &By) -> Result<Found, DbErr> {
        transaction(db, |tx| async move {
            let tx = &*tx;
            if tx.get_database_backend() == DbBackend::Postgres {
                tx.execute_unprepared("LOCK TABLE erased_person IN EXCLUSIVE MODE").await?;
            }
            let found = self.find(tx).await?;
            self.remember(tx, by, Utc::now()).await?;
            match self.attendance {
                Attendance::Delete => self.delete(tx).await?,
                Attendance::Pseudonymise => self.pseudonymise(tx).await?,
            }
            staff::Entity::delete_many().filter(self.staff()).exec(tx).await?;
            letter::Entity::delete_many().filter(self.letters()).exec(tx).await?;
            self.forget_originals(tx).await?;
            Ok(found)
        })
        .await
    }

    async fn find(&self, tx: &DatabaseTransaction) -> Result<Found, DbErr> {
        let in_sessions = user::Entity::find()
            .select_only()
            .column(user::Column::SessionId)
            .filter(self.of_person(user::Column::UserId, user::Column::SessionId))
            .into_query();
        let recordings = recording::Entity::find()
            .select_only()
            .columns([recording::Column::Id, recording::Column::FileKey])
            .filter(recording::Column::SessionId.in_subquery(in_sessions))
            .order_by_asc(recording::Column::Id);
        let recordings: Vec<(i64, Option<String>)> = recordings.into_tuple().all(tx).await?;
        let connections = self.of_person(interval::Column::UserId, interval::Column::SessionId);
        let sessions = self.of_person(user::Column::UserId, user::Column::SessionId);
        Ok(Found {
            sessions: user::Entity::find().filter(sessions).count(tx).await?,
            connections: interval::Entity::find().filter(connections).count(tx).await?,
            dead_letters: letter::Entity::find().filter(self.letters()).count(tx).await?,
            edited_dead_letters: self.edited(tx).await?.len() as u64,
            staff: staff::Entity::find().filter(self.staff()).count(tx).await?,
            recordings: recordings.into_iter().map(|(id, file_key)| Recording { id, file_key }).collect(),
        })
    }

    async fn remember(&self, tx: &DatabaseTransaction, by: &By, now: DateTime<Utc>) -> Result<(), DbErr> {
        let salt = salt(tx).await?;
        let rows = self.sources.iter().map(|source| erased::ActiveModel {
            hash: Set(hash(&salt, &(source.clone(), self.user_id.clone()))),
            erased_at: Set(now),
            erased_by: Set(by.name.clone()),
            reason: Set(by.reason.clone()),
        });
        let again = OnConflict::column(erased::Column::Hash)
            .update_columns([erased::Column::ErasedAt, erased::Column::ErasedBy, erased::Column::Reason])
            .to_owned();
        erased::Entity::insert_many(rows).on_conflict(again).exec_without_returning(tx).await.map(|_| ())
    }

    async fn delete(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let connections = self.of_person(interval::Column::UserId, interval::Column::SessionId);
        interval::Entity::delete_many().filter(connections).exec(tx).await?;
        let sessions = self.of_person(user::Column::UserId, user::Column::SessionId);
        user::Entity::delete_many().filter(sessions).exec(tx).await.map(|_| ())
    }

    /// The same pseudonym in all sessions, and another each time: it says that it was one person, and not which.
    async fn pseudonymise(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let pseudonym = format!("erased-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let connection =
            Expr::val("erased-").binary(BinOper::Custom("||"), Expr::col(interval::Column::Id).cast_as("text"));
        interval::Entity::update_many()
            .col_expr(interval::Column::UserId, Expr::value(pseudonym.as_str()))
            .col_expr(interval::Column::ParticipantSid, connection)
            .filter(self.of_person(interval::Column::UserId, interval::Column::SessionId))
            .exec(tx)
            .await?;
        user::Entity::update_many()
            .col_expr(user::Column::UserId, Expr::value(pseudonym.as_str()))
            .col_expr(user::Column::Name, Expr::value(None::<String>))
            .col_expr(user::Column::NameAt, Expr::value(None::<DateTime<Utc>>))
            .col_expr(user::Column::UpdatedAt, Expr::value(Utc::now()))
            .filter(self.of_person(user::Column::UserId, user::Column::SessionId))
            .exec(tx)
            .await
            .map(|_| ())
    }

    /// Of dead letters that somebody has edited to be about somebody else: as they came, and what was changed.
    async fn forget_originals(&self, tx: &DatabaseTransaction) -> Result<(), DbErr> {
        let edited = self.edited(tx).await?;
        letter::Entity::update_many()
            .col_expr(letter::Column::OriginalBody, Expr::value(None::<Vec<u8>>))
            .filter(letter::Column::Id.is_in(edited.iter().copied()))
            .exec(tx)
            .await?;
        change::Entity::update_many()
            .col_expr(change::Column::Reason, Expr::value(None::<String>))
            .filter(change::Column::DeadLetterId.is_in(edited))
            .filter(change::Column::Change.eq("edited"))
            .exec(tx)
            .await
            .map(|_| ())
    }

    /// The ids of those.
    async fn edited(&self, tx: &DatabaseTransaction) -> Result<Vec<i64>, DbErr> {
        let edited = letter::Entity::find()
            .select_only()
            .columns([letter::Column::Id, letter::Column::OriginalBody])
            .filter(letter::Column::Source.is_in(&self.sources))
            .filter(letter::Column::OriginalBody.is_not_null())
            .filter(
                Condition::any().add(letter::Column::UserId.ne(&self.user_id)).add(letter::Column::UserId.is_null()),
            )
            .order_by_asc(letter::Column::Id);
        let edited: Vec<(i64, Vec<u8>)> = edited.into_tuple().all(tx).await?;
        let was_about = |body: &[u8]| webhook::person(body).is_some_and(|(user_id, _)| user_id == self.user_id);
        Ok(edited.into_iter().filter(|(_, original)| was_about(original)).map(|(id, _)| id).collect())
    }

    fn of_person<C: sea_orm::ColumnTrait>(&self, user_id: C, session_id: C) -> Condition {
        Condition::all().add(user_id.eq(&self.user_id)).add(session_id.in_subquery(self.sessions()))
    }

    fn sessions(&self) -> SelectStatement {
        let of_sources = session::Entity::find().select_only().column(session::Column::Id);
        of_sources.filter(session::Column::Source.is_in(&self.sources)).into_query()
    }

    fn letters(&self) -> Condition {
        Condition::all().add(letter::Column::UserId.eq(&self.user_id)).add(letter::Column::Source.is_in(&self.sources))
    }

    /// A course is of no server, but its sessions are: where another one's have it, an id may be somebody else's.
    fn staff(&self) -> Condition {
        let elsewhere = session::Entity::find()
            .select_only()
            .column(session::Column::CourseId)
            .filter(session::Column::CourseId.is_not_null())
            .filter(session::Column::Source.is_not_in(&self.sources))
            .into_query();
        Condition::all()
            .add(staff::Column::UserId.eq(&self.user_id))
            .add(staff::Column::CourseId.not_in_subquery(elsewhere))
    }
}
