//! The part of the `/auth` API that Rollcall asks, in the very words of a running server.

use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::DATE;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use rollcall_shared::signature;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::answer::{Answer, Endings};
use super::{Body, Content, Disconnect, Endpoint, Recording, Server, download, token, webhook};

/// Both spellings are taken.
#[derive(Deserialize)]
struct Asked {
    #[serde(alias = "recordId", default)]
    record_id: String,
}

#[derive(Serialize)]
struct Failure<'a> {
    status: bool,
    msg: &'a str,
    status_code: &'a str,
}

#[derive(Serialize)]
struct Success<T> {
    status: bool,
    msg: &'static str,
    status_code: &'static str,
    #[serde(flatten)]
    more: T,
}

#[derive(Serialize)]
struct Token {
    token: String,
}

#[derive(Serialize)]
struct Info<'a> {
    recording_info: RecordingInfo<'a>,
    room_info: RoomInfo<'a>,
}

#[derive(Serialize)]
struct RecordingInfo<'a> {
    record_id: &'a str,
    room_id: &'a str,
    room_sid: &'a str,
    file_path: &'a str,
    /// In MB, rounded to 2 places.
    file_size: Value,
    creation_time: String,
    room_creation_time: String,
    metadata: Metadata<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    title: &'a str,
    subtitles: Empty,
    extra_data: ExtraData<'a>,
}

#[derive(Serialize)]
struct Empty {}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ExtraData<'a> {
    meeting_created: String,
    meeting_ended: String,
    meeting_title: &'a str,
}

#[derive(Serialize)]
struct RoomInfo<'a> {
    room_title: &'a str,
    room_id: &'a str,
    room_sid: &'a str,
    joined_participants: &'static str,
    webhook_url: &'static str,
    created: String,
    ended: String,
    analytics_file_id: &'static str,
}

pub(super) async fn answer(server: &Server, request: Request<Incoming>) -> Result<Response<Body>, Disconnect> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Disconnect)?.to_bytes();
    let is_old = server.state().is_old;
    let endpoint = match (&parts.method, parts.uri.path()) {
        (&Method::POST, "/auth/recording/info") if !is_old => Some(Endpoint::Info),
        (&Method::POST, "/auth/recording/recordingInfo") => Some(Endpoint::OldInfo),
        (&Method::POST, "/auth/recording/getDownloadToken") => Some(Endpoint::DownloadToken),
        (&Method::POST, "/auth/room/isRoomActive") => Some(Endpoint::IsRoomActive),
        _ => None,
    };
    let Some(endpoint) = endpoint else {
        return Ok(download::text(StatusCode::NOT_FOUND, "not found"));
    };
    let asked = serde_json::from_slice::<Asked>(&body);
    let record_id = asked.as_ref().ok().map(|asked| asked.record_id.as_str());
    let fault = server.take_fault(endpoint, &parts, record_id).await;
    let endings = Endings {
        not_found: spoken(failure(StatusCode::OK, "recording not found", "NOT_FOUND"), is_old),
        unauthorized: spoken(bad_signature(), is_old),
        storage: download::storage_url(server, record_id.unwrap_or_default()),
    };
    let (status, json) = match refusal(server, &parts, &body) {
        Some(refusal) => refusal,
        None if endpoint == Endpoint::IsRoomActive => no_room(),
        None => match asked {
            Ok(asked) => found(server, endpoint, &asked.record_id).await,
            Err(error) => failure(StatusCode::OK, &format!("proto: syntax error: {error}"), "INVALID_PARAMETERS"),
        },
    };
    let mut response = spoken((status, json), is_old).send(fault, endings).await?;
    if let Some(ahead) = server.state().clock_ahead {
        let date = (Utc::now() + ahead).format("%a, %d %b %Y %H:%M:%S GMT").to_string();
        response.headers_mut().insert(DATE, date.try_into().expect("a date is ASCII"));
    }
    Ok(response)
}

/// It has no rooms.
fn no_room() -> (StatusCode, Vec<u8>) {
    #[derive(Serialize)]
    struct RoomActive {
        is_active: bool,
    }
    let more = RoomActive { is_active: false };
    (StatusCode::OK, json(&Success { status: true, msg: "room not found", status_code: "ROOM_NOT_FOUND", more }))
}

/// What a request gets that is not signed as it should be.
fn refusal(server: &Server, request: &Parts, body: &[u8]) -> Option<(StatusCode, Vec<u8>)> {
    let missing = |header: &str| {
        let msg = format!("Missing {header} header.");
        Some(failure(StatusCode::UNAUTHORIZED, &msg, "MISSING_REQUIRED_PARAMETER"))
    };
    let Some(api_key) = header(&request.headers, "api-key") else { return missing("API-KEY") };
    let Some(signed) = header(&request.headers, "hash-signature") else { return missing("HASH-SIGNATURE") };
    if api_key != server.api_key {
        Some(failure(StatusCode::UNAUTHORIZED, "Invalid API key provided.", "INVALID_API_KEY"))
    } else if signed != signature::sign_hmac(&server.secret, body) {
        Some(bad_signature())
    } else {
        None
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

async fn found(server: &Server, endpoint: Endpoint, record_id: &str) -> (StatusCode, Vec<u8>) {
    if record_id.is_empty() {
        let msg = "validation error: record_id: value is required";
        return failure(StatusCode::OK, msg, "INVALID_PARAMETERS");
    }
    let Some(recording) = server.state().recordings.get(record_id).cloned() else {
        return failure(StatusCode::OK, "recording not found", "NOT_FOUND");
    };
    if endpoint == Endpoint::DownloadToken {
        let lifetime = server.state().token_lifetime.as_secs().try_into().unwrap_or(i64::MAX / 2);
        let now = Utc::now().timestamp();
        let token = token::sign(&server.api_key, &server.secret, &recording.file_path, now, lifetime);
        success(Token { token })
    } else {
        let bytes = match &recording.content {
            Content::Zeros(bytes) => *bytes,
            // The record in the database outlives a file that is gone.
            Content::File(path) => tokio::fs::metadata(path).await.map_or(0, |file| file.len()),
        };
        success(info(&recording, bytes))
    }
}

fn info(recording: &Recording, bytes: u64) -> Info<'_> {
    let rfc3339 = |at: Option<DateTime<Utc>>| {
        // What the metadata of a recording says that was made while the class was still running.
        at.map_or("0001-01-01T00:00:00Z".to_owned(), |at| at.format("%Y-%m-%dT%H:%M:%SZ").to_string())
    };
    let plain = |at: DateTime<Utc>| at.format("%Y-%m-%d %H:%M:%S").to_string();
    Info {
        recording_info: RecordingInfo {
            record_id: &recording.record_id,
            room_id: &recording.room_id,
            room_sid: &recording.room_sid,
            file_path: &recording.file_path,
            file_size: webhook::megabytes(bytes, 100.0),
            creation_time: recording.created_at.timestamp().to_string(),
            room_creation_time: recording.room_created_at.timestamp().to_string(),
            metadata: Metadata {
                title: &recording.title,
                subtitles: Empty {},
                extra_data: ExtraData {
                    meeting_created: rfc3339(Some(recording.room_created_at)),
                    meeting_ended: rfc3339(recording.room_ended_at.filter(|ended| *ended <= recording.created_at)),
                    meeting_title: &recording.title,
                },
            },
        },
        room_info: RoomInfo {
            room_title: &recording.title,
            room_id: &recording.room_id,
            room_sid: &recording.room_sid,
            joined_participants: "0",
            webhook_url: "",
            created: plain(recording.room_created_at),
            ended: recording.room_ended_at.map(plain).unwrap_or_default(),
            analytics_file_id: "",
        },
    }
}

fn success(more: impl Serialize) -> (StatusCode, Vec<u8>) {
    (StatusCode::OK, json(&Success { status: true, msg: "success", status_code: "SUCCESS", more }))
}

fn failure(status: StatusCode, msg: &str, status_code: &str) -> (StatusCode, Vec<u8>) {
    (status, json(&Failure { status: false, msg, status_code }))
}

fn bad_signature() -> (StatusCode, Vec<u8>) {
    let msg = "Failed to verify provided authentication details.";
    failure(StatusCode::UNAUTHORIZED, msg, "INVALID_TOKEN_OR_SIGNATURE")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and structs always serialise")
}

/// The answer in the words of this server or of an older one.
fn spoken((status, json): (StatusCode, Vec<u8>), is_old: bool) -> Answer {
    Answer::json(status, if is_old { in_old_words(&json) } else { json })
}

/// Older servers answer camelCase and no `status_code`.
fn in_old_words(json: &[u8]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(json).expect("it was written above");
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status_code");
    }
    camel_case(value).to_string().into_bytes()
}

fn camel_case(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (camel(&name), camel_case(value))).collect(),
        Value::Array(values) => values.into_iter().map(camel_case).collect(),
        value => value,
    }
}

fn camel(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(word.len().min(1));
        camel.push_str(&first.to_uppercase());
        camel.push_str(rest);
    }
    camel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_words_are_camel_case() {
        let new = br#"{"status":true,"status_code":"SUCCESS","recording_info":{"room_creation_time":"1"}}"#;
        let old: Value = serde_json::from_slice(&in_old_words(new)).unwrap();
        assert_eq!(old, serde_json::json!({"status": true, "recordingInfo": {"roomCreationTime": "1"}}));
    }
}
