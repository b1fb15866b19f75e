//! A message as AMQP's properties and headers, and back.

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::queue::message::header::{
    ATTEMPT, DEAD_CAUSE, DEAD_KIND, DEAD_LETTER_ID, EVENT_ID, FIRST_FAILED_AT, HOST, LAST_ERROR, LAST_FAILED_AT,
    RECEIVED_AT, REPLAY, ROOM_ID, SOURCE, TRACEPARENT,
};
use crate::queue::message::{POISON, cut};
use crate::queue::{DeadKind, Death, MAX_NAME, Message, Replay};

/// Persistent, of AMQP's two delivery modes.
const PERSISTENT: u8 = 2;
/// How RabbitMQ says that it has dead-lettered a message itself: a list of tables, the latest first.
const X_DEATH: &str = "x-death";

impl Message {
    /// As properties, of what is dead with why, when last, and where. They fit the smallest frame that AMQP lets a broker have.
    pub(super) fn properties(&self, death: Option<&Death>) -> BasicProperties {
        let message = self.clone().bounded();
        let mut headers = FieldTable::default();
        text(&mut headers, SOURCE, &message.source);
        time(&mut headers, RECEIVED_AT, message.received_at);
        let optional = [
            (EVENT_ID, &message.event_id),
            (ROOM_ID, &message.room_id),
            (TRACEPARENT, &message.traceparent),
            (LAST_ERROR, &message.last_error),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                text(&mut headers, name, value);
            }
        }
        if message.attempt > 0 {
            headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(message.attempt.into()));
        }
        if let Some(at) = message.first_failed_at {
            time(&mut headers, FIRST_FAILED_AT, at);
        }
        if let Some(Replay { dead_letter_id, number }) = message.replay {
            headers.insert(DEAD_LETTER_ID.into(), AMQPValue::LongLongInt(dead_letter_id));
            headers.insert(REPLAY.into(), AMQPValue::LongLongInt(number.into()));
        }
        if let Some(death) = death {
            text(&mut headers, DEAD_KIND, death.kind.as_str());
            text(&mut headers, DEAD_CAUSE, cut(&death.cause, MAX_NAME));
            text(&mut headers, HOST, cut(&death.host, MAX_NAME));
            time(&mut headers, LAST_FAILED_AT, death.at);
        }
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(message.id.to_string().into())
            .with_type(short(&message.event))
            .with_headers(headers)
    }

    /// Reads a message as the broker gives it. Nothing is refused: what somebody else has put into a queue of ours gets
    /// an id, the same each time that it is delivered, and its body decides about its fate.
    pub(super) fn read(properties: &BasicProperties, body: Vec<u8>) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        let id = properties.message_id().as_ref().and_then(|id| Uuid::parse_str(id.as_str()).ok());
        Self {
            id: id.unwrap_or_else(|| id_of(&body)),
            event_id: read_text(&headers, EVENT_ID),
            event: properties.kind().as_ref().map(ToString::to_string).unwrap_or_default(),
            source: read_text(&headers, SOURCE).unwrap_or_default(),
            room_id: read_text(&headers, ROOM_ID),
            received_at: read_time(&headers, RECEIVED_AT).unwrap_or_else(Utc::now),
            traceparent: read_text(&headers, TRACEPARENT),
            attempt: read_integer(&headers, ATTEMPT).and_then(|attempt| attempt.try_into().ok()).unwrap_or_default(),
            first_failed_at: read_time(&headers, FIRST_FAILED_AT),
            last_error: read_text(&headers, LAST_ERROR),
            replay: read_replay(&headers),
            body: body.into(),
        }
        .bounded()
    }
}

fn id_of(body: &[u8]) -> Uuid {
    let [id @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = <[u8; 32]>::from(Sha256::digest(body));
    Uuid::new_v8(id)
}

fn read_replay(headers: &FieldTable) -> Option<Replay> {
    let dead_letter_id = read_integer(headers, DEAD_LETTER_ID)?;
    Some(Replay { dead_letter_id, number: read_integer(headers, REPLAY)?.try_into().ok()? })
}

/// Why a message died that lies among the dead. One that we have not buried was dead-lettered by the broker: it came back too
/// often. What says nothing at all somebody else has put there.
pub(super) fn read_death(properties: &BasicProperties) -> Option<Death> {
    let headers = properties.headers().clone().unwrap_or_default();
    let by_us = || {
        let kind = DeadKind::parse(&read_text(&headers, DEAD_KIND)?)?;
        let cause = read_text(&headers, DEAD_CAUSE).unwrap_or_else(|| kind.as_str().to_owned());
        let host = read_text(&headers, HOST).unwrap_or_default();
        Some(Death { kind, cause, host, at: read_time(&headers, LAST_FAILED_AT)? })
    };
    let by_the_broker = || {
        let AMQPValue::FieldArray(deaths) = headers.inner().get(X_DEATH)? else { return None };
        // That a retry was due is such an entry too.
        let of_limit = |death: &&AMQPValue| match death {
            AMQPValue::FieldTable(death) => read_text(death, "reason").as_deref() == Some("delivery_limit"),
            _ => false,
        };
        let AMQPValue::FieldTable(death) = deaths.as_slice().iter().find(of_limit)? else { return None };
        let AMQPValue::Timestamp(seconds) = *death.inner().get("time")? else { return None };
        let at = DateTime::from_timestamp(seconds.try_into().ok()?, 0)?;
        Some(Death { kind: DeadKind::Poison, cause: POISON.to_owned(), host: String::new(), at })
    };
    by_us().or_else(by_the_broker)
}

/// A message's headers, for people to read.
pub(super) fn headers(properties: &BasicProperties) -> Map<String, Value> {
    properties.headers().as_ref().map(as_object).unwrap_or_default()
}

fn as_object(table: &FieldTable) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), as_json(value))).collect()
}

fn as_json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        AMQPValue::Timestamp(value) => (*value).into(),
        AMQPValue::ShortString(value) => value.as_str().into(),
        AMQPValue::LongString(value) => String::from_utf8_lossy(value.as_bytes()).into(),
        AMQPValue::ByteArray(value) => String::from_utf8_lossy(value.as_slice()).into(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(as_json).collect(),
        AMQPValue::FieldTable(table) => as_object(table).into(),
        AMQPValue::DecimalValue(_) | AMQPValue::Void => Value::Null,
    }
}

/// How often the broker has given a message of a quorum queue out before: the header comes with the second delivery.
pub(super) fn delivery_count(properties: &BasicProperties) -> i64 {
    let headers = properties.headers().as_ref();
    headers.and_then(|headers| read_integer(headers, "x-delivery-count")).unwrap_or_default()
}

/// A text as AMQP's short strings, such as routing keys, are: one that is too long for one is as good as none, and what has none
/// is kept with what nobody wants.
pub(super) fn short(text: &str) -> ShortString {
    ShortString::try_new(text).unwrap_or_default()
}

fn text(headers: &mut FieldTable, name: &str, value: &str) {
    headers.insert(name.into(), AMQPValue::LongString(value.into()));
}

fn time(headers: &mut FieldTable, name: &str, at: DateTime<Utc>) {
    headers.insert(name.into(), AMQPValue::LongLongInt(at.timestamp_millis()));
}

fn read_text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(value) => Some(String::from_utf8_lossy(value.as_bytes()).into_owned()),
        AMQPValue::ShortString(value) => Some(value.to_string()),
        _ => None,
    }
}

/// Brokers give integers back in the size they like.
fn read_integer(headers: &FieldTable, name: &str) -> Option<i64> {
    match *headers.inner().get(name)? {
        AMQPValue::LongLongInt(value) => Some(value),
        AMQPValue::LongInt(value) => Some(value.into()),
        AMQPValue::LongUInt(value) => Some(value.into()),
        AMQPValue::ShortInt(value) => Some(value.into()),
        AMQPValue::ShortUInt(value) => Some(value.into()),
        AMQPValue::ShortShortInt(value) => Some(value.into()),
        AMQPValue::ShortShortUInt(value) => Some(value.into()),
        _ => None,
    }
}

fn read_time(headers: &FieldTable, name: &str) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_millis(read_integer(headers, name)?)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use lapin::protocol::constants::FRAME_MIN_SIZE;

    use super::*;
    use crate::queue::MAX_ID;
    use crate::queue::message::MAX_ERROR;

    #[test]
    fn a_message_comes_back_as_it_went() {
        let mut message = Message::new("main", "room_started", Bytes::from_static(b"{}"));
        message.received_at = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        assert_eq!(Message::read(&message.properties(None), b"{}".to_vec()), message);

        message.event_id = Some("EV_1".into());
        message.room_id = Some("روم".repeat(150));
        message.traceparent = Some("00-1-2-01".into());
        let mut failed = message.failed(&"é".repeat(4_000)).failed("again");
        failed.first_failed_at = DateTime::from_timestamp_millis(1_800_000_001_000);
        failed.replay = Some(Replay { dead_letter_id: 7, number: 2 });
        let death = Death {
            kind: DeadKind::Exhausted,
            cause: "plugnmeet-away".into(),
            host: "host".into(),
            at: DateTime::from_timestamp_millis(1_800_000_002_345).unwrap(),
        };
        let properties = failed.properties(Some(&death));
        let read = Message::read(&properties, b"{}".to_vec());
        assert_eq!(read, failed);
        assert_eq!((read.attempt, read.last_error.as_deref()), (2, Some("again")));
        assert_eq!(read_death(&properties), Some(death));
        assert_eq!(headers(&properties)["rollcall-dead-letter-id"], 7);
        assert_eq!(read_death(&failed.properties(None)), None);
    }

    #[test]
    fn whatever_is_said_of_a_message_fits_the_smallest_frame_and_no_text_is_too_long() {
        let death = |length| Death {
            kind: DeadKind::Exhausted,
            cause: "c".repeat(length),
            host: "h".repeat(length),
            at: DateTime::<Utc>::MAX_UTC,
        };
        let of_length = |name: usize, id: usize| Message {
            event_id: Some("i".repeat(id)),
            room_id: Some("r".repeat(id)),
            traceparent: Some("t".repeat(name)),
            attempt: u32::MAX,
            replay: Some(Replay { dead_letter_id: i64::MAX, number: i32::MAX }),
            ..Message::new(&"s".repeat(name), &"e".repeat(name), Bytes::from_static(b"{}"))
        };
        let longest = of_length(MAX_NAME, MAX_ID).failed(&"x".repeat(100_000));
        let properties = longest.properties(Some(&death(100_000)));
        assert!(size_in_frame(&properties) <= FRAME_MIN_SIZE as usize, "{}", size_in_frame(&properties));
        let read = Message::read(&properties, b"{}".to_vec());
        assert_eq!((&read.event, &read.source, read.attempt), (&longest.event, &longest.source, u32::MAX));
        assert_eq!((&read.event_id, &read.room_id), (&longest.event_id, &longest.room_id));
        assert_eq!(read.last_error.map(|error| error.len()), Some(MAX_ERROR));

        let mut too_long = of_length(100_000, 5_000_000);
        too_long.last_error = Some("é".repeat(100_000));
        let properties = too_long.properties(Some(&death(100_000)));
        assert!(size_in_frame(&properties) <= FRAME_MIN_SIZE as usize, "{}", size_in_frame(&properties));
        let read = Message::read(&properties, b"{}".to_vec());
        assert_eq!((read.source.as_str(), read.event.as_str(), read.event_id, read.room_id), ("", "", None, None));
        assert_eq!(short(&"k".repeat(256)).as_str(), "");
    }

    /// As AMQP writes them: a frame's head and end, the class, weight and length of the body, which properties there are; then
    /// each.
    fn size_in_frame(properties: &BasicProperties) -> usize {
        let text = |text: &Option<ShortString>| text.as_ref().map_or(0, |text| 1 + text.as_str().len());
        let header = |(name, value): (&ShortString, &AMQPValue)| match value {
            AMQPValue::LongString(text) => 1 + name.as_str().len() + 1 + 4 + text.as_bytes().len(),
            _ => 1 + name.as_str().len() + 1 + 8,
        };
        let headers: usize = properties.headers().as_ref().unwrap().inner().iter().map(header).sum();
        let texts = [properties.content_type(), properties.message_id(), properties.kind()].map(text);
        7 + 1 + 12 + 2 + 4 + headers + 1 + texts.iter().sum::<usize>()
    }

    #[test]
    fn what_a_stranger_published_is_read_too() {
        let message = Message::read(&BasicProperties::default(), b"?".to_vec());
        assert_eq!((message.source.as_str(), message.attempt, message.body.as_ref()), ("", 0, b"?".as_slice()));
    }
}
