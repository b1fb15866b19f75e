//! The download of a recording: streamed, without `Range` unless a proxy in front honours it; and the object storage
//! that a server may redirect to.

use std::io;
use std::time::SystemTime;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_RANGE, LAST_MODIFIED, RANGE,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeekExt};

use super::answer::{Answer, Endings};
use super::{Body, Content, Disconnect, Endpoint, Recording, Server, token};

pub(super) fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = Full::new(Bytes::from_static(text.as_bytes()));
    let mut response = Response::new(BodyExt::boxed_unsync(body.map_err(io::Error::other)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) fn storage_url(server: &Server, record_id: &str) -> String {
    format!("http://{}/storage/{record_id}", server.address)
}

pub(super) async fn answer(server: &Server, request: Request<Incoming>) -> Result<Response<Body>, Disconnect> {
    let (parts, _) = request.into_parts();
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"));
    }
    let path = parts.uri.path();
    let (endpoint, found) = if let Some(token) = path.strip_prefix("/download/recording/") {
        (Endpoint::Download, by_token(server, token))
    } else if let Some(record_id) = path.strip_prefix("/storage/") {
        (Endpoint::Storage, by_record_id(server, record_id))
    } else {
        return Ok(text(StatusCode::NOT_FOUND, "not found"));
    };
    let record_id = found.as_ref().ok().map(|recording| recording.record_id.clone());
    let fault = server.take_fault(endpoint, &parts, record_id.as_deref()).await;
    let honours_range = endpoint == Endpoint::Storage || server.state().honours_range;
    let endings = Endings {
        not_found: refuse(NOT_FOUND),
        unauthorized: refuse((StatusCode::UNAUTHORIZED, token::EXPIRED)),
        storage: storage_url(server, record_id.as_deref().unwrap_or_default()),
    };
    let answer = match found {
        // The token was given all the same: the server does not look for the file before.
        Ok(recording) => {
            let headers = honours_range.then_some(&parts.headers);
            let mut answer = file(&recording, headers).await.unwrap_or_else(|_| refuse(NOT_FOUND));
            if !server.state().names_versions {
                answer.headers.remove(LAST_MODIFIED);
                answer.headers.remove(ETAG);
            }
            answer
        }
        Err(refusal) => refuse(refusal),
    };
    answer.send(fault, endings).await
}

/// What a request gets that opens no file.
type Refusal = (StatusCode, &'static str);
const NOT_FOUND: Refusal = (StatusCode::NOT_FOUND, "file not found");

fn by_token(server: &Server, token: &str) -> Result<Recording, Refusal> {
    let path = token::verify(&server.secret, token, Utc::now().timestamp())
        .map_err(|reason| (StatusCode::UNAUTHORIZED, reason))?;
    let state = server.state();
    state.recordings.values().find(|recording| recording.file_path == path).cloned().ok_or(NOT_FOUND)
}

fn by_record_id(server: &Server, record_id: &str) -> Result<Recording, Refusal> {
    server.state().recordings.get(record_id).cloned().ok_or(NOT_FOUND)
}

fn refuse((status, text): Refusal) -> Answer {
    Answer::text(status, text)
}

/// A recording's file; with the request's headers where `Range` is honoured.
async fn file(recording: &Recording, headers: Option<&HeaderMap>) -> io::Result<Answer> {
    let (size, modified) = match &recording.content {
        Content::Zeros(size) => (*size, recording.created_at),
        Content::File(path) => {
            let file = tokio::fs::metadata(path).await?;
            (file.len(), file.modified().unwrap_or(SystemTime::UNIX_EPOCH).into())
        }
    };
    let last_modified = http_date(modified);
    let etag = format!("\"{:x}-{size:x}\"", modified.timestamp_micros());
    let range = match headers.map(|headers| range(headers, size, &[&last_modified, &etag])) {
        Some(Asked::Part { start, end }) => Some((start, end)),
        Some(Asked::Impossible) => return Ok(unsatisfiable(size)),
        Some(Asked::Whole) | None => None,
    };
    let (start, end) = range.unwrap_or((0, size));
    let mut answer = Answer {
        status: if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK },
        headers: HeaderMap::new(),
        length: end - start,
        body: open(&recording.content, start, end - start).await?,
    };
    answer.set(CONTENT_TYPE, "video/mp4");
    answer.set(CONTENT_DISPOSITION, &format!("attachment; filename={}.mp4", recording.record_id));
    answer.set(LAST_MODIFIED, &last_modified);
    if headers.is_some() {
        answer.set(ACCEPT_RANGES, "bytes");
        answer.set(ETAG, &etag);
    }
    if range.is_some() {
        answer.set(CONTENT_RANGE, &format!("bytes {start}-{}/{size}", end - 1));
    }
    Ok(answer)
}

async fn open(content: &Content, start: u64, length: u64) -> io::Result<std::pin::Pin<Box<dyn AsyncRead + Send>>> {
    Ok(match content {
        Content::Zeros(_) => Box::pin(tokio::io::repeat(0).take(length)),
        Content::File(path) => {
            let mut file = tokio::fs::File::open(path).await?;
            file.seek(io::SeekFrom::Start(start)).await?;
            Box::pin(file.take(length))
        }
    })
}

fn unsatisfiable(size: u64) -> Answer {
    let mut answer = Answer::text(StatusCode::RANGE_NOT_SATISFIABLE, "");
    answer.set(CONTENT_RANGE, &format!("bytes */{size}"));
    answer
}

fn http_date(at: DateTime<Utc>) -> String {
    at.format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    /// From `start` up to but without `end`.
    Part {
        start: u64,
        end: u64,
    },
    Impossible,
}

/// What `Range` asks for, of a file of `size` bytes that goes by these `validators`. One range of bytes from a start is
/// enough to continue a download; every other kind gets the whole file, as RFC 9110 allows.
fn range(headers: &HeaderMap, size: u64, validators: &[&str]) -> Asked {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if text(IF_RANGE).is_some_and(|validator| !validators.contains(&validator)) {
        return Asked::Whole;
    }
    let Some((start, end)) = text(RANGE).and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Asked::Whole;
    };
    let Ok(start) = start.parse::<u64>() else { return Asked::Whole };
    let end = match end.parse::<u64>() {
        Ok(last) => last.saturating_add(1).min(size),
        Err(_) if end.is_empty() => size,
        Err(_) => return Asked::Whole,
    };
    if start < end { Asked::Part { start, end } } else { Asked::Impossible }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_honoured_for_the_same_file() {
        let asked = |range_: &str, if_range: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, range_.parse().unwrap());
            if let Some(validator) = if_range {
                headers.insert(IF_RANGE, validator.parse().unwrap());
            }
            range(&headers, 100, &["\"etag\""])
        };
        assert_eq!(asked("bytes=40-", None), Asked::Part { start: 40, end: 100 });
        assert_eq!(asked("bytes=40-49", Some("\"etag\"")), Asked::Part { start: 40, end: 50 });
        assert_eq!(asked("bytes=40-", Some("\"other\"")), Asked::Whole);
        assert_eq!(asked("bytes=100-", None), Asked::Impossible);
        assert_eq!(asked("bytes=-5", None), Asked::Whole);
        assert_eq!(asked("lines=1-2", None), Asked::Whole);
    }
}
