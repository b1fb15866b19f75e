//! A message as AMQP's properties and headers, and back.

use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use uuid::Uuid;

use crate::queue::{DeadKind, Message};

/// Persistent, of AMQP's two delivery modes.
const PERSISTENT: u8 = 2;
const EVENT_ID: &str = "rollcall-event-id";
const SOURCE: &str = "rollcall-source";
const ROOM_ID: &str = "rollcall-room-id";
const RECEIVED_AT: &str = "rollcall-received-at";
const TRACEPARENT: &str = "traceparent";
const ATTEMPT: &str = "rollcall-attempt";
const FIRST_FAILED_AT: &str = "rollcall-first-failed-at";
const LAST_FAILED_AT: &str = "rollcall-last-failed-at";
const LAST_ERROR: &str = "rollcall-last-error";
const DEAD_KIND: &str = "rollcall-dead-kind";
const HOST: &str = "rollcall-host";

impl Message {
    pub(super) fn properties(&self) -> BasicProperties {
        let mut headers = FieldTable::default();
        text(&mut headers, SOURCE, &self.source);
        time(&mut headers, RECEIVED_AT, self.received_at);
        let optional = [
            (EVENT_ID, &self.event_id),
            (ROOM_ID, &self.room_id),
            (TRACEPARENT, &self.traceparent),
            (LAST_ERROR, &self.last_error),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                text(&mut headers, name, value);
            }
        }
        if self.attempt > 0 {
            headers.insert(ATTEMPT.into(), AMQPValue::LongLongInt(self.attempt.into()));
        }
        if let Some(at) = self.first_failed_at {
            time(&mut headers, FIRST_FAILED_AT, at);
        }
        BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_content_type("application/json".into())
            .with_message_id(self.id.to_string().into())
            .with_type(self.event.as_str().into())
            .with_headers(headers)
    }

    /// What a dead letter carries besides: why, when last, and where.
    pub(super) fn dead_properties(&self, kind: DeadKind, host: &str) -> BasicProperties {
        let properties = self.properties();
        let mut headers = properties.headers().clone().unwrap_or_default();
        text(&mut headers, DEAD_KIND, kind.as_str());
        text(&mut headers, HOST, host);
        time(&mut headers, LAST_FAILED_AT, Utc::now());
        properties.with_headers(headers)
    }

    /// Reads a message as the broker gives it. Nothing is refused: what somebody else has put into a queue of ours gets
    /// an id, and its body decides about its fate.
    pub(super) fn read(properties: &BasicProperties, body: Vec<u8>) -> Self {
        let headers = properties.headers().clone().unwrap_or_default();
        let id = properties.message_id().as_ref().and_then(|id| Uuid::parse_str(id.as_str()).ok());
        Self {
            id: id.unwrap_or_else(Uuid::now_v7),
            event_id: read_text(&headers, EVENT_ID),
            event: properties.kind().as_ref().map(ToString::to_string).unwrap_or_default(),
            source: read_text(&headers, SOURCE).unwrap_or_default(),
            room_id: read_text(&headers, ROOM_ID),
            received_at: read_time(&headers, RECEIVED_AT).unwrap_or_else(Utc::now),
            traceparent: read_text(&headers, TRACEPARENT),
            attempt: read_integer(&headers, ATTEMPT).and_then(|attempt| attempt.try_into().ok()).unwrap_or_default(),
            first_failed_at: read_time(&headers, FIRST_FAILED_AT),
            last_error: read_text(&headers, LAST_ERROR),
            body: body.into(),
        }
    }
}

/// How often the broker has given a message of a quorum queue out before: the header comes with the second delivery.
pub(super) fn delivery_count(properties: &BasicProperties) -> i64 {
    let headers = properties.headers().as_ref();
    headers.and_then(|headers| read_integer(headers, "x-delivery-count")).unwrap_or_default()
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

    use super::*;

    #[test]
    fn a_message_comes_back_as_it_went() {
        let mut message = Message::new("main", "room_started", Bytes::from_static(b"{}"));
        message.received_at = DateTime::from_timestamp_millis(1_800_000_000_123).unwrap();
        assert_eq!(Message::read(&message.properties(), b"{}".to_vec()), message);

        message.event_id = Some("EV_1".into());
        message.room_id = Some("روم".repeat(200));
        message.traceparent = Some("00-1-2-01".into());
        let mut failed = message.failed(&"é".repeat(4_000)).failed("again");
        failed.first_failed_at = DateTime::from_timestamp_millis(1_800_000_001_000);
        let read = Message::read(&failed.dead_properties(DeadKind::Exhausted, "host"), b"{}".to_vec());
        assert_eq!(read, failed);
        assert_eq!((read.attempt, read.last_error.as_deref()), (2, Some("again")));
    }

    #[test]
    fn what_a_stranger_published_is_read_too() {
        let message = Message::read(&BasicProperties::default(), b"?".to_vec());
        assert_eq!((message.source.as_str(), message.attempt, message.body.as_ref()), ("", 0, b"?".as_slice()));
    }
}
