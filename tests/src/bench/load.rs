//! The load: many kept-alive connections, each posting one webhook after the other as a room does. It shares the processors
//! with what it measures, so it writes bytes that are ready and reads of an answer no more than it must.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::task::JoinSet;

use super::requests::Requests;
use super::{Measured, Plan, Window};
use crate::wire::Connection;

/// Posts `requests` to `address` for as long as the plan says, and waits for every answer.
///
/// # Errors
/// A connection failed, or an answer cannot be read.
pub async fn run(address: SocketAddr, requests: Requests, plan: Plan) -> anyhow::Result<Measured> {
    let window = Window::from_now(plan);
    let mut connections = JoinSet::new();
    for number in 0..plan.connections {
        connections.spawn(converse(address, requests.clone(), number, window));
    }
    let mut sum = Measured { accepted: 0, refused: 0, micros: Vec::new(), elapsed: plan.measured };
    while let Some(ended) = connections.join_next().await {
        let part = ended??;
        sum.accepted += part.accepted;
        sum.refused += part.refused;
        sum.micros.extend(part.micros);
    }
    sum.micros.sort_unstable();
    Ok(sum)
}

/// One connection's share.
struct Part {
    accepted: u64,
    refused: u64,
    micros: Vec<u32>,
}

async fn converse(address: SocketAddr, requests: Requests, number: usize, window: Window) -> anyhow::Result<Part> {
    let mut connection = Connection::open(address).await?;
    let mut part = Part { accepted: 0, refused: 0, micros: Vec::new() };
    // Connections do not walk through the requests in step.
    for request in requests.iter().cycle().skip(number % requests.len()) {
        if window.is_over() {
            break;
        }
        let begun = Instant::now();
        if connection.ask(request).await? {
            part.accepted += 1;
            window.note(begun, &mut part.micros);
        } else {
            part.refused += 1;
        }
    }
    Ok(part)
}
