//! An answer as it should be, and what a [`Fault`] makes of it.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, future, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER};
use hyper::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio_util::io::ReaderStream;

use super::{Body, Disconnect, Fault};

/// As much of a file as is read at once.
const CHUNK: usize = 256 * 1024;
/// A slow body is sent in this many parts a second.
const PARTS_A_SECOND: u64 = 10;

const LOGIN_PAGE: &str = "<!DOCTYPE html><html><head><title>Log in</title></head><body>Please log in.</body></html>";

/// An answer whose body is read as it is sent.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) length: u64,
    pub(super) body: Pin<Box<dyn AsyncRead + Send>>,
}

/// What an endpoint says where a fault leaves the words to it, and where its file lies in the object storage.
pub(super) struct Endings {
    pub(super) not_found: Answer,
    pub(super) unauthorized: Answer,
    pub(super) storage: String,
}

impl Answer {
    pub(super) fn text(status: StatusCode, text: &str) -> Self {
        Self::of_bytes(status, "text/plain; charset=utf-8", text.to_owned().into_bytes())
    }

    pub(super) fn json(status: StatusCode, json: Vec<u8>) -> Self {
        Self::of_bytes(status, "application/json", json)
    }

    fn of_bytes(status: StatusCode, content_type: &'static str, bytes: Vec<u8>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        Self { status, headers, length: bytes.len() as u64, body: Box::pin(io::Cursor::new(bytes)) }
    }

    fn redirect(to: &str) -> Self {
        let mut answer = Self::text(StatusCode::TEMPORARY_REDIRECT, "");
        answer.set(LOCATION, to);
        answer
    }

    pub(super) fn set(&mut self, name: HeaderName, value: &str) {
        // A value that no header can have is a test's own mistake; it shows as a header that is not there.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }

    /// The answer on the wire, as `fault` has it.
    pub(super) async fn send(self, fault: Fault, endings: Endings) -> Result<Response<Body>, Disconnect> {
        Ok(match fault {
            Fault::None | Fault::Held => self.respond(Spoilt::default()),
            Fault::Late(after) => {
                tokio::time::sleep(after).await;
                self.respond(Spoilt::default())
            }
            Fault::Disconnect => return Err(Disconnect),
            Fault::Slow { bytes_per_second } => {
                self.respond(Spoilt { bytes_per_second: Some(bytes_per_second), ..Spoilt::default() })
            }
            Fault::CutOff { after_bytes } => self.respond(Spoilt { cut_off: Some(after_bytes), ..Spoilt::default() }),
            Fault::WrongLength { announced } => Self { length: announced, ..self }.respond(Spoilt::default()),
            Fault::NoLength => {
                let mut response = self.respond(Spoilt::default());
                response.headers_mut().remove(CONTENT_LENGTH);
                response
            }
            Fault::NotFound => endings.not_found.respond(Spoilt::default()),
            Fault::Unauthorized => endings.unauthorized.respond(Spoilt::default()),
            Fault::Redirect => Self::redirect(&endings.storage).respond(Spoilt::default()),
            Fault::RedirectTo(to) => Self::redirect(&to).respond(Spoilt::default()),
            Fault::Html => {
                Self::of_bytes(StatusCode::OK, "text/html; charset=utf-8", LOGIN_PAGE.into()).respond(Spoilt::default())
            }
            Fault::Status { status, retry_after } => {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let mut answer = Self::text(status, status.canonical_reason().unwrap_or_default());
                if let Some(after) = retry_after {
                    answer.set(RETRY_AFTER, &after.as_secs().to_string());
                }
                answer.respond(Spoilt::default())
            }
        })
    }

    fn respond(self, spoilt: Spoilt) -> Response<Body> {
        let body = StreamBody::new(spoilt.stream(self.body.take(self.length)).map(|chunk| chunk.map(Frame::data)));
        let mut response = Response::new(BodyExt::boxed_unsync(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response.headers_mut().insert(CONTENT_LENGTH, self.length.into());
        response
    }
}

/// How a body comes that does not come as it should.
#[derive(Default)]
struct Spoilt {
    bytes_per_second: Option<u64>,
    cut_off: Option<u64>,
}

impl Spoilt {
    fn stream(self, body: impl AsyncRead + Send + 'static) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let whole = ReaderStream::with_capacity(body.take(self.cut_off.unwrap_or(u64::MAX)), self.part());
        let pause = self.bytes_per_second.map(|_| Duration::from_secs(1) / PARTS_A_SECOND as u32);
        let paced = whole.then(move |chunk| async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            chunk
        });
        let end = self.cut_off.map(|_| cut_off());
        paced.chain(stream::iter(end).then(|end| end))
    }

    fn part(&self) -> usize {
        let part = self.bytes_per_second.map(|bytes| (bytes / PARTS_A_SECOND).max(1));
        part.and_then(|part| usize::try_from(part).ok()).unwrap_or(CHUNK)
    }
}

/// The error that makes hyper close the connection. It lets hyper send first what it was given: it flushes when a
/// body has nothing ready, and throws away what is not sent when a body fails.
async fn cut_off() -> io::Result<Bytes> {
    tokio::task::yield_now().await;
    future::ready(Err(io::Error::other("the stand-in was told to cut off here"))).await
}
