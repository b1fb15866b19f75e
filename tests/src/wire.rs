//! HTTP by hand: requests that are ready for the wire, and connections that stay open for as long as a test wants.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use rollcall_shared::signature::sign_token;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::installation::Server;

/// The longest answer that is understood.
const MAX_ANSWER: usize = 1024;

/// A request with a token of `now` (Unix seconds), and the headers that a PlugNMeet server's Go client sends.
pub fn request(keys: &Server, body: &str, now: i64) -> Vec<u8> {
    let token = sign_token(&keys.api_key, &keys.secret.as_str().into(), body.as_bytes(), now);
    let head = format!(
        "POST /webhooks/plugnmeet HTTP/1.1\r\nHost: ingress\r\nUser-Agent: Go-http-client/1.1\r\n\
         Content-Length: {}\r\nAuthorization: {token}\r\nContent-Type: application/json\r\nHash-Token: {token}\r\n\
         Accept-Encoding: gzip\r\n\r\n",
        body.len()
    );
    (head + body).into_bytes()
}

/// A kept-alive connection.
#[derive(Debug)]
pub struct Connection(pub TcpStream);

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Sends a request and reads the answer; whether that is 200.
    ///
    /// # Errors
    /// The connection is lost, or the answer cannot be read.
    pub async fn ask(&mut self, request: &[u8]) -> anyhow::Result<bool> {
        self.0.write_all(request).await.context("a connection was lost")?;
        let mut answer = [0; MAX_ANSWER];
        let mut length = 0;
        while !is_whole(&answer[..length])? {
            ensure!(length < MAX_ANSWER, "an answer is longer than {MAX_ANSWER} bytes");
            let read = self.0.read(&mut answer[length..]).await.context("a connection was lost")?;
            ensure!(read > 0, "a connection was closed before its answer was whole");
            length += read;
        }
        Ok(answer.starts_with(b"HTTP/1.1 200 "))
    }
}

/// Whether an answer is there to its last byte.
fn is_whole(answer: &[u8]) -> anyhow::Result<bool> {
    let Some(head) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(false) };
    let mut lines = str::from_utf8(&answer[..head])?.split("\r\n");
    let length = lines.find_map(|line| line.strip_prefix("content-length: ")).context("an answer has no length")?;
    Ok(answer.len() == head + 4 + length.parse::<usize>()?)
}
