//! The load: many kept-alive connections, each posting one webhook after the other as a room does. It shares the processors
//! with what it measures, so it writes bytes that are ready and reads of an answer no more than it must.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::requests::Requests;
use super::{Measured, Plan, Window};

/// The longest answer that is understood.
const MAX_ANSWER: usize = 1024;

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
    let mut stream = TcpStream::connect(address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let mut part = Part { accepted: 0, refused: 0, micros: Vec::new() };
    // Connections do not walk through the requests in step.
    for request in requests.iter().cycle().skip(number % requests.len()) {
        if window.is_over() {
            break;
        }
        let begun = Instant::now();
        stream.write_all(request).await.context("a connection was lost")?;
        if is_ok(&mut stream).await? {
            part.accepted += 1;
            window.note(begun, &mut part.micros);
        } else {
            part.refused += 1;
        }
    }
    Ok(part)
}

/// Reads one answer; whether it is 200.
async fn is_ok(stream: &mut TcpStream) -> anyhow::Result<bool> {
    let mut answer = [0; MAX_ANSWER];
    let mut length = 0;
    loop {
        ensure!(length < MAX_ANSWER, "an answer is longer than {MAX_ANSWER} bytes");
        let read = stream.read(&mut answer[length..]).await.context("a connection was lost")?;
        ensure!(read > 0, "a connection was closed before its answer was whole");
        length += read;
        if is_whole(&answer[..length])? {
            return Ok(answer.starts_with(b"HTTP/1.1 200 "));
        }
    }
}

/// Whether an answer is there to its last byte.
fn is_whole(answer: &[u8]) -> anyhow::Result<bool> {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(false) };
    let mut lines = str::from_utf8(&answer[..head])?.split("\r\n");
    let length = lines.find_map(|line| line.strip_prefix("content-length: ")).context("an answer has no length")?;
    Ok(answer.len() == head + 4 + length.parse::<usize>()?)
}
