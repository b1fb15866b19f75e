//! What the ingress counts, for `/metrics`.
//!
//! No label's values are a sender's to choose: a stranger must not be able to make time series.

use std::time::Duration;

use metrics::{Gauge, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use rollcall_shared::event::WorkerName;
use rollcall_shared::signature::Scheme;

use crate::answer::Answer;

const REQUESTS: &str = "rollcall_ingress_requests_total";
const REJECTIONS: &str = "rollcall_ingress_rejections_total";
const IGNORED: &str = "rollcall_ingress_ignored_total";
const ACCEPTED: &str = "rollcall_ingress_accepted_total";
const SIGNATURES: &str = "rollcall_ingress_signatures_total";
const BODY_BYTES: &str = "rollcall_ingress_body_bytes_total";
const PUBLISH: &str = "rollcall_ingress_publish_seconds";
const CONNECTIONS: &str = "rollcall_ingress_connections";
const CLOSED: &str = "rollcall_ingress_connections_closed_total";
const ACCEPT_ERRORS: &str = "rollcall_ingress_accept_errors_total";

/// The events that PlugNMeet is known to send and no worker wants; those of its next release count as `other`.
const KNOWN_UNWANTED: [&str; 8] = [
    "track_published",
    "track_unpublished",
    "start_recording",
    "recording_transcoding_finished",
    "start_rtmp",
    "end_rtmp",
    "analytics_proceeded",
    "artifact_created",
];

/// Tells the recorder what the metrics mean; after it was installed.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests answered, by result. A request whose sender went away first is in none.");
    describe_counter!(REJECTIONS, "Requests refused, by reason: in more detail than by result.");
    describe_counter!(IGNORED, "Signed events that no worker wants, by event.");
    describe_counter!(ACCEPTED, "Events accepted, by the worker that wants them.");
    describe_counter!(SIGNATURES, "Events accepted, by how they were signed.");
    describe_counter!(BODY_BYTES, Unit::Bytes, "Bodies of accepted events.");
    describe_histogram!(
        PUBLISH,
        Unit::Seconds,
        "From handing an event to the queue to its being durable, or giving up."
    );
    describe_gauge!(CONNECTIONS, "Connections open now.");
    describe_counter!(CLOSED, "Connections without a good signature that were closed for another one, by limit.");
    describe_counter!(ACCEPT_ERRORS, "Times that no connection could be taken, for want of files or memory.");
}

pub(crate) fn answered(answer: Answer) {
    counter!(REQUESTS, "result" => answer.label()).increment(1);
}

pub(crate) fn rejected(reason: &'static str) {
    counter!(REJECTIONS, "reason" => reason).increment(1);
}

pub(crate) fn ignored(event: &str) {
    let event = KNOWN_UNWANTED.into_iter().find(|known| *known == event).unwrap_or("other");
    counter!(IGNORED, "event" => event).increment(1);
}

pub(crate) fn accepted(worker: WorkerName, scheme: Scheme, body_bytes: usize) {
    counter!(ACCEPTED, "worker" => worker.as_str()).increment(1);
    counter!(SIGNATURES, "scheme" => scheme.as_str()).increment(1);
    counter!(BODY_BYTES).increment(body_bytes as u64);
}

pub(crate) fn published(took: Duration) {
    histogram!(PUBLISH).record(took);
}

/// `limit` is which one was reached: `full`, all connections, or `address`, those of one address.
pub(crate) fn closed_for_another(limit: &'static str) {
    counter!(CLOSED, "limit" => limit).increment(1);
}

pub(crate) fn accept_failed() {
    counter!(ACCEPT_ERRORS).increment(1);
}

/// One open connection, counted for as long as it lives.
#[derive(Debug)]
pub(crate) struct OpenConnection(());

impl OpenConnection {
    pub(crate) fn new() -> Self {
        connections().increment(1.0);
        Self(())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        connections().decrement(1.0);
    }
}

fn connections() -> Gauge {
    gauge!(CONNECTIONS)
}
