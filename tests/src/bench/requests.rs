//! What is posted: the events of people and rooms from the captured classes, signed by tokens as real servers do.

use std::sync::Arc;

use chrono::Utc;
use rollcall_shared::event::WorkerName;
use serde_json::Value;

use crate::fixtures;
use crate::installation::Server;
use crate::wire::request;

/// The captured webhooks that a run posts, over and over.
#[derive(Debug)]
pub struct Webhooks {
    /// Event name and body.
    bodies: Vec<(String, String)>,
}

/// Requests as they go over the wire, ready signed. A token lives five minutes, so a run signs its own.
pub type Requests = Arc<[Vec<u8>]>;

impl Webhooks {
    /// Every captured webhook that tells of a person or a room: about 4 KB each.
    pub fn captured() -> Self {
        let requests = fixtures::classes().into_values().flatten();
        let bodies = requests.filter_map(|request| {
            let body: Value = serde_json::from_str(&request.body).ok()?;
            let event = body["event"].as_str()?.to_owned();
            let worker = WorkerName::wanting(&event)?;
            (worker != WorkerName::Recordings).then_some((event, request.body))
        });
        Self { bodies: bodies.collect() }
    }

    /// Each with its event's name.
    pub fn bodies(&self) -> &[(String, String)] {
        &self.bodies
    }

    /// How long a body is on average, in bytes.
    pub fn average_bytes(&self) -> usize {
        self.bodies.iter().map(|(_, body)| body.len()).sum::<usize>() / self.bodies.len()
    }

    /// The requests that a server with these keys would send now.
    pub fn signed(&self, keys: &Server) -> Requests {
        let now = Utc::now().timestamp();
        self.bodies.iter().map(|(_, body)| request(keys, body, now)).collect()
    }
}
