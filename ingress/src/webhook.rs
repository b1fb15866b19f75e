//! The one thing that a request can ask for, top to bottom: path, method, body, signature, event, queue, answer. What cannot
//! be a webhook by its head is read and dropped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use chrono::Utc;
use hyper::body::{Body, Incoming};
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Request};
use ipnet::IpNet;
use rollcall_shared::config;
use rollcall_shared::event::WorkerName;
use rollcall_shared::plugnmeet::webhook::Routing;
use rollcall_shared::queue::{MAX_ID, Message, PublishError, Publisher};
use rollcall_shared::signature::{Rejection, Signed, Verifier};
use rollcall_shared::telemetry::client::ClientAddress;
use rollcall_shared::telemetry::trace_context;
use tracing::{debug, warn};

use crate::admission::Place;
use crate::answer::Answer;
use crate::bodies::{Bodies, BodyError};
use crate::metrics;
use crate::rejections::LastRejections;

const HASH_TOKEN: HeaderName = HeaderName::from_static("hash-token");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// How long the disk may take to have an event that the broker does not take: one that is slower has failed.
const DISK_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes webhooks in: what it has accepted is durable in the queue.
pub struct Webhooks {
    paths: Vec<String>,
    verifier: Verifier,
    publisher: Publisher,
    rejections: Arc<LastRejections>,
    trusted_proxies: Vec<IpNet>,
    bodies: Bodies,
    publish_timeout: Duration,
}

/// Why a webhook is not taken in. For the log, the metrics and the page of rejections; a sender is told an [`Answer`].
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("no webhooks are taken at this path")]
    Path,
    #[error("webhooks are posted")]
    Method,
    #[error(transparent)]
    Reading(#[from] BodyError),
    #[error(transparent)]
    Signature(#[from] Rejection),
    /// The parser's own message may quote the body.
    #[error("the body is not JSON with an event (line {}, column {})", .0.line(), .0.column())]
    Body(#[from] serde_json::Error),
    #[error("the event could not be made durable")]
    Queue,
}

impl Refusal {
    fn answer(&self) -> Answer {
        match self {
            Self::Path => Answer::NotFound,
            Self::Method => Answer::MethodNotAllowed,
            Self::Reading(BodyError::TooSlow) => Answer::BodyTooSlow,
            Self::Reading(BodyError::TooLong) => Answer::BodyTooLong,
            Self::Reading(BodyError::NoMemory) => Answer::Busy,
            Self::Reading(BodyError::CutOff(_)) | Self::Body(_) => Answer::BadBody,
            Self::Signature(_) => Answer::Forbidden,
            Self::Queue => Answer::Unavailable,
        }
    }

    /// A short stable word for metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::Path => "wrong_path",
            Self::Method => "wrong_method",
            Self::Reading(BodyError::TooSlow) => "body_too_slow",
            Self::Reading(BodyError::TooLong) => "body_too_long",
            Self::Reading(BodyError::CutOff(_)) => "body_cut_off",
            Self::Reading(BodyError::NoMemory) => "busy",
            Self::Signature(rejection) => rejection.label(),
            Self::Body(error) if error.is_data() => "no_event",
            Self::Body(_) => "not_json",
            Self::Queue => "unavailable",
        }
    }

    fn log(&self, head: &Parts, client: ClientAddress) {
        let path = head.uri.path();
        match self {
            // The whole internet asks for paths that are not here.
            Self::Path | Self::Method => debug!(%client, path, reason = %self, "A request was refused."),
            // It was logged where the event is known.
            Self::Queue => {}
            _ => warn!(%client, path, reason = %self, "A request was refused."),
        }
    }
}

impl Webhooks {
    /// Takes webhooks in at the paths and within the limits of `[ingress]`; a body has `body_timeout` to arrive. What is
    /// refused goes to `rejections`.
    pub fn new(
        settings: &config::Ingress,
        verifier: Verifier,
        publisher: Publisher,
        rejections: Arc<LastRejections>,
        body_timeout: Duration,
    ) -> Self {
        Self {
            paths: settings.paths.iter().map(|path| without_slash(path).to_owned()).collect(),
            verifier,
            publisher,
            rejections,
            trusted_proxies: settings.trusted_proxies.clone(),
            bodies: Bodies::new(settings.max_body_bytes, settings.max_bodies_bytes, body_timeout),
            publish_timeout: settings.confirm_timeout + DISK_TIMEOUT,
        }
    }

    /// Does what a request asks for that came over the connection with this place, and says what to tell its sender.
    pub(crate) async fn answer(&self, request: Request<Incoming>, place: &Place) -> Answer {
        let (head, body) = request.into_parts();
        let mut size = body.size_hint().lower();
        let answer = self.take_in(&head, body, &mut size, place).await.unwrap_or_else(|refusal| {
            let client = ClientAddress::of(place.peer(), &head.headers, &self.trusted_proxies);
            metrics::rejected(refusal.reason());
            // What cannot be one is only logged where somebody wants to see everything.
            if !self.may_be_a_webhook(&head) || self.rejections.keep(refusal.reason(), client, size) {
                refusal.log(&head, client);
            }
            refusal.answer()
        });
        metrics::answered(answer);
        answer
    }

    /// `size` is the body's as its sender announced it, and grows where more than that is read.
    async fn take_in(&self, head: &Parts, body: Incoming, size: &mut u64, place: &Place) -> Result<Answer, Refusal> {
        if let Err(refusal) = self.check_route(head).and_then(|()| check_signed(&head.headers)) {
            self.bodies.discard(body, size).await?;
            return Err(refusal);
        }
        let kept = self.bodies.keep(body, size, place).await?;
        let body = &kept.bytes;
        let Signed { source, scheme } = self.verify(&head.headers, body)?;
        place.signed();
        let routing = Routing::read(body)?;
        let (event, event_id, room_id) = (routing.event.as_ref(), routing.id.as_deref(), routing.room_id());
        let Some(worker) = WorkerName::wanting(event) else {
            metrics::ignored(event);
            debug!(event, event_id, room_id, source, "An event was ignored: no worker wants it.");
            return Ok(Answer::Ignored);
        };
        let message = message(source, &routing, body.clone(), &head.headers);
        let id = message.id;
        self.publish(message).await.map_err(|error| {
            warn!(%id, event, event_id, room_id, source, %error, "An event was not queued: its sender shall come again.");
            Refusal::Queue
        })?;
        metrics::accepted(worker, scheme, body.len());
        debug!(%id, event, event_id, room_id, source, "An event was queued.");
        Ok(Answer::Accepted(id))
    }

    fn check_route(&self, head: &Parts) -> Result<(), Refusal> {
        let path = without_slash(head.uri.path());
        if !self.paths.iter().any(|taken| taken == path) {
            return Err(Refusal::Path);
        }
        if head.method != Method::POST {
            return Err(Refusal::Method);
        }
        Ok(())
    }

    /// Whether an operator may want to see a request that was refused among the last ones.
    ///
    /// The whole internet asks for paths that are not here, and would push out everything else within the hour. But a
    /// server that is set to post to a wrong path, or behind a redirect that makes a GET of its POST, sends the header
    /// that only a webhook has.
    fn may_be_a_webhook(&self, head: &Parts) -> bool {
        self.check_route(head).is_ok() || head.headers.contains_key(HASH_TOKEN)
    }

    /// Which server signed the body, and how.
    fn verify(&self, headers: &HeaderMap, body: &[u8]) -> Result<Signed<'_>, Rejection> {
        let header = |name| headers.get(name).map(HeaderValue::as_bytes);
        self.verifier.verify(header(HASH_TOKEN), header(AUTHORIZATION), body, Utc::now().timestamp())
    }

    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let begun = Instant::now();
        let published = self.publisher.publish(message, self.publish_timeout).await;
        metrics::published(begun.elapsed());
        published
    }
}

/// Whether there is anything that may turn out to be a signature.
fn check_signed(headers: &HeaderMap) -> Result<(), Refusal> {
    let is_signed = headers.contains_key(HASH_TOKEN) || headers.contains_key(AUTHORIZATION);
    if is_signed { Ok(()) } else { Err(Rejection::Missing.into()) }
}

fn message(source: &str, routing: &Routing<'_>, body: Bytes, headers: &HeaderMap) -> Message {
    let id = |id: &str| (id.len() <= MAX_ID).then(|| id.to_owned());
    let mut message = Message::new(source, &routing.event, body);
    message.event_id = routing.id.as_deref().and_then(id);
    message.room_id = routing.room_id().and_then(id);
    message.traceparent = Some(traceparent(headers));
    message
}

/// The sender's trace context goes on; without one, one begins here.
fn traceparent(headers: &HeaderMap) -> String {
    let given = headers.get(TRACEPARENT).and_then(|value| trace_context::parse(value.as_bytes()));
    given.map_or_else(trace_context::make, str::to_owned)
}

/// One slash at the end of a path makes no difference.
fn without_slash(path: &str) -> &str {
    path.strip_suffix('/').unwrap_or(path)
}
