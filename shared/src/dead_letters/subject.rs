//! What a body is about: the columns by which a dead letter is found.

use chrono::{DateTime, Utc};

use crate::erasure::person_of;
use crate::plugnmeet::webhook::{self, ParseError, Parsed, Routing};
use crate::queue::MAX_ID;

/// What a body is about. No text in it has a NUL, which PostgreSQL takes in none; and an id that is too long to travel is none
/// to find anything by: the body has it.
#[derive(Debug)]
pub struct Subject {
    /// The event's name.
    pub event: String,
    /// The server's id of the event.
    pub event_id: Option<String>,
    /// The room's own id.
    pub room_id: Option<String>,
    /// The person, where it is about one.
    pub user_id: Option<String>,
    /// When what it tells of the person began; where it does not say, when it was taken in.
    pub began_at: DateTime<Utc>,
    /// Why no worker would understand the body.
    pub problem: Option<ParseError>,
}

impl Subject {
    /// Reads a body from `source`, taken in at `received_at`.
    ///
    /// # Errors
    /// It is not JSON, or has no `event`: no worker is there for it.
    pub fn of(source: &str, body: &[u8], received_at: DateTime<Utc>) -> Result<Self, serde_json::Error> {
        let routing = Routing::read(body)?;
        let (person, problem) = match webhook::parse(source, body, received_at) {
            Ok(Parsed::Event(event)) => (person_of(&event).map(|((_, user_id), began_at)| (user_id, began_at)), None),
            Ok(Parsed::Ignored(_)) => (None, None),
            Err(problem) => {
                let person = webhook::person(body).map(|(user_id, since)| (user_id, since.unwrap_or(received_at)));
                (person, Some(problem))
            }
        };
        let (user_id, began_at) = person.map_or((None, received_at), |(user_id, began_at)| (Some(user_id), began_at));
        Ok(Self {
            event: without_nul(&routing.event),
            event_id: routing.id.as_deref().and_then(id),
            room_id: routing.room_id().and_then(id),
            user_id: user_id.as_deref().and_then(id),
            began_at,
            problem,
        })
    }
}

fn id(id: &str) -> Option<String> {
    (id.len() <= MAX_ID).then(|| without_nul(id))
}

/// A text as PostgreSQL takes it.
pub(super) fn without_nul(text: &str) -> String {
    text.replace('\0', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_says_what_it_is_about_even_where_no_worker_understands_it() {
        let of = |body: &str| Subject::of("main", body.as_bytes(), Utc::now());
        let join = r#"{"event":"participant_joined","id":"EV_1","room":{"room_id":"al\u0000gebra","sid":"S"},
                       "participant":{"identity":"42","sid":"PA_1"}}"#;
        let subject = of(join).unwrap();
        assert_eq!(subject.room_id.as_deref(), Some("algebra"));
        assert_eq!((subject.user_id.as_deref(), subject.event_id.as_deref()), (Some("42"), Some("EV_1")));
        assert!(subject.problem.is_none());
        let torn = of(r#"{"event":"room_started","room":{"room_id":"algebra"}}"#).unwrap();
        assert_eq!(torn.problem.unwrap().to_string(), "room_started has no room.sid");
        assert_eq!(torn.room_id.as_deref(), Some("algebra"));
        let of_nobody_s_room = of(r#"{"event":"participant_joined","participant":{"identity":"42"}}"#).unwrap();
        assert!(of_nobody_s_room.problem.is_some());
        assert_eq!(of_nobody_s_room.user_id.as_deref(), Some("42"));
        assert!(of(r#"{"room":{}}"#).is_err());
    }
}
