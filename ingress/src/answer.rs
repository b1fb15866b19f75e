//! What a sender is told.
//!
//! PlugNMeet tries an event again after 429 and 5xx (but 501), at most twice, and drops it after any other status that is
//! not 2xx. So a status here decides whether the event comes back.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use uuid::Uuid;

/// How long the sender of an event waits, in seconds, before it tries again: PlugNMeet keeps to it, twice.
///
/// With what each try may take itself that is 30 to 38 s in all: longer than a RabbitMQ node takes to restart (10 to 20 s),
/// and shorter than the 50 s after a class that PlugNMeet keeps what it could not deliver.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("15");

/// What a sender is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The event is durable in the queue, in the message of this id.
    Accepted(Uuid),
    /// No worker wants events of this name.
    Ignored,
    /// The body is not JSON, or has no event.
    BadBody,
    /// The signature is not good. Nothing on the wire says in which way.
    Forbidden,
    /// No webhooks are taken at this path.
    NotFound,
    /// Webhooks are posted.
    MethodNotAllowed,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The body is longer than is taken.
    BodyTooLong,
    /// Other bodies have all the memory that there is for them.
    Busy,
    /// The event could not be made durable, neither on the broker nor on disk.
    Unavailable,
}

impl Answer {
    /// A short stable word for metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Accepted(_) => "accepted",
            Self::Ignored => "ignored",
            Self::BadBody => "bad_body",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BodyTooSlow => "body_too_slow",
            Self::BodyTooLong => "body_too_long",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
        }
    }

    /// Whether the rest of the body is still to come, so that nothing else can be read from the connection.
    pub(crate) fn closes_connection(self) -> bool {
        matches!(self, Self::BodyTooSlow | Self::BodyTooLong | Self::Busy)
    }

    /// Whether the request was signed by a server of the settings, and not by just anybody.
    pub(crate) fn is_to_a_server(self) -> bool {
        matches!(self, Self::Accepted(_) | Self::Ignored | Self::Unavailable)
    }

    pub(crate) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self == Self::MethodNotAllowed {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        if matches!(self, Self::Busy | Self::Unavailable) {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self.closes_connection() {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn status(self) -> StatusCode {
        match self {
            Self::Accepted(_) | Self::Ignored => StatusCode::OK,
            Self::BadBody => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BodyTooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn body(self) -> Bytes {
        let error = match self {
            Self::Accepted(id) => return format!(r#"{{"status":"ok","result":"accepted","id":"{id}"}}"#).into(),
            Self::Ignored => return Bytes::from_static(br#"{"status":"ok","result":"ignored"}"#),
            Self::BadBody => r#"{"status":"error","error":"the body is not JSON with an event"}"#,
            Self::Forbidden => r#"{"status":"error","error":"the signature is missing or wrong"}"#,
            Self::NotFound => r#"{"status":"error","error":"no webhooks are taken here"}"#,
            Self::MethodNotAllowed => r#"{"status":"error","error":"webhooks are posted"}"#,
            Self::BodyTooSlow => r#"{"status":"error","error":"the body did not arrive in time"}"#,
            Self::BodyTooLong => r#"{"status":"error","error":"the body is too long"}"#,
            Self::Busy => r#"{"status":"error","error":"too many long bodies come at once, try again later"}"#,
            Self::Unavailable => r#"{"status":"error","error":"the event cannot be queued now, try again later"}"#,
        };
        Bytes::from_static(error.as_bytes())
    }
}
