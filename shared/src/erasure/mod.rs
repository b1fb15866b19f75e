//! People who are to be forgotten, and stay so.
//!
//! [`erase`](erase::Erasure::run) removes a person from every table of the [`catalogue`], and leaves a hash of the person's id. Whoever
//! writes down what an event, a dead letter or a file of them says of a person asks a [`Register`] first, in the same transaction:
//! what began before the person was erased, and comes again, late, or out of a queue, brings nobody back.
//!
//! What makes that certain on PostgreSQL, whoever is at it at the same time: who asks holds a lock of the table `erased_person`
//! (`ROW SHARE`, which many may hold) until its commit, and who erases takes one that none of those goes with. So either is wholly
//! before the other. In an SQLite database only one can write anyway.

pub mod catalogue;
pub mod erase;

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sea_orm::sea_query::LockType;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DatabaseTransaction, DbBackend, DbErr, EntityTrait as _, QueryFilter as _,
    QuerySelect as _,
};
use sha2::Sha256;
use tokio::sync::OnceCell;

use crate::event::{Change, Event};
use crate::store::entity::{erased_person as erased, erasure_salt};

/// How many people one statement asks for: SQLite takes about 32,000 values.
const AT_ONCE: usize = 1_000;

/// A server's name in the settings, and the id of a person there.
pub type Person = (String, String);

/// Who was erased.
#[derive(Debug, Default)]
pub struct Register {
    salt: OnceCell<String>,
}

/// Those of some people who were erased, and when.
#[derive(Debug, Default)]
pub struct Erased(HashMap<Person, DateTime<Utc>>);

impl Register {
    /// Those of these people who were erased. What is written of them in this transaction, and by no other, may rely on it.
    ///
    /// # Errors
    /// The database.
    pub async fn of(
        &self,
        tx: &DatabaseTransaction,
        people: impl IntoIterator<Item = Person>,
    ) -> Result<Erased, DbErr> {
        let mut people: Vec<_> = people.into_iter().collect();
        people.sort_unstable();
        people.dedup();
        if people.is_empty() {
            return Ok(Erased::default());
        }
        let salt = self.salt.get_or_try_init(|| salt(tx)).await?;
        let by_hash: HashMap<_, _> = people.into_iter().map(|person| (hash(salt, &person), person)).collect();
        let hashes: Vec<_> = by_hash.keys().cloned().collect();
        let mut found = HashMap::new();
        for hashes in hashes.chunks(AT_ONCE) {
            let mut rows = erased::Entity::find().filter(erased::Column::Hash.is_in(hashes));
            if tx.get_database_backend() == DbBackend::Postgres {
                rows = rows.lock(LockType::KeyShare);
            }
            let rows = rows.all(tx).await?.into_iter();
            found.extend(rows.filter_map(|row| Some((by_hash.get(&row.hash)?.clone(), row.erased_at))));
        }
        Ok(Erased(found))
    }
}

impl Erased {
    /// Whether what is said of a person was erased: it began before that.
    pub fn has(&self, person: &Person, began_at: DateTime<Utc>) -> bool {
        self.0.get(person).is_some_and(|erased_at| began_at <= *erased_at)
    }

    /// Whether all that an event says was erased.
    pub fn has_event(&self, event: &Event) -> bool {
        person_of(event).is_some_and(|(person, began_at)| self.has(&person, began_at))
    }
}

/// The person that an event is about, and when what it tells of them began: a connection that began before somebody was erased
/// ends without them, too.
pub fn person_of(event: &Event) -> Option<(Person, DateTime<Utc>)> {
    match &event.change {
        Change::Joined(connection) | Change::Left(connection, _) => {
            let began_at = connection.joined_at.unwrap_or(event.at);
            Some(((event.room.source.clone(), connection.user_id.clone()), began_at))
        }
        Change::RoomCreated | Change::RoomStarted | Change::RoomEnded | Change::Recording(_) => None,
    }
}

/// Nobody is erased from here to the end of the transaction: what it reads of people it may write again.
///
/// # Errors
/// The database.
pub async fn hold(tx: &DatabaseTransaction) -> Result<(), DbErr> {
    if tx.get_database_backend() == DbBackend::Postgres {
        tx.execute_unprepared("LOCK TABLE erased_person IN ROW SHARE MODE").await?;
    }
    Ok(())
}

async fn salt(tx: &DatabaseTransaction) -> Result<String, DbErr> {
    let row = erasure_salt::Entity::find().one(tx).await?;
    row.map(|row| row.salt).ok_or_else(|| DbErr::RecordNotFound("the salt of erasure_salt".to_owned()))
}

/// No separator is in a server's name.
fn hash(salt: &str, (source, user_id): &Person) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(salt.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("{source}/{user_id}").as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(source: &str, id: &str) -> Person {
        (source.to_owned(), id.to_owned())
    }

    #[test]
    fn a_hash_is_of_the_server_the_person_and_the_salt() {
        let of = hash("salt", &person("main", "42"));
        assert_eq!((of.len(), hash("salt", &person("main", "42"))), (64, of.clone()));
        for other in [("salt", "main", "4"), ("salt", "other", "42"), ("pepper", "main", "42")] {
            assert_ne!(hash(other.0, &person(other.1, other.2)), of);
        }
    }

    #[test]
    fn what_begins_after_somebody_was_erased_is_new() {
        let erased_at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let erased = Erased(HashMap::from([(person("main", "42"), erased_at)]));
        let second = chrono::TimeDelta::seconds(1);
        assert!(erased.has(&person("main", "42"), erased_at) && erased.has(&person("main", "42"), erased_at - second));
        assert!(!erased.has(&person("main", "42"), erased_at + second));
        assert!(!erased.has(&person("other", "42"), erased_at) && !erased.has(&person("main", "4"), erased_at));
    }
}
