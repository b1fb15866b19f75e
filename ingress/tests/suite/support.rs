//! A sender of webhooks that can be as slow and as wrong as a test wants.

use std::net::SocketAddr;
use std::time::Duration;

use rollcall_shared::signature::{sign_hmac, sign_token};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

pub(crate) const KEY: &str = "key";
pub(crate) const SECRET: &str = "a secret of a test";
pub(crate) const PATH: &str = "/webhooks/plugnmeet";

/// An event that no worker wants: answered 200 without a broker.
pub(crate) const UNWANTED: &str = r#"{"event":"track_published","id":"EV_1","room":{"room_id":"r"}}"#;
/// An event that a worker wants.
pub(crate) const WANTED: &str = r#"{"event":"room_started","id":"EV_2","room":{"room_id":"r"}}"#;

/// Longer than anything that is expected to happen; shorter than a person's patience.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(crate) struct Sender(BufReader<TcpStream>);

impl Sender {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self(BufReader::new(TcpStream::connect(address).await.unwrap()))
    }

    /// From another address of this machine: all of 127.0.0.0/8 are.
    pub(crate) async fn connect_from(from: &str, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
        Self(BufReader::new(socket.connect(address).await.unwrap()))
    }

    /// With the smallest buffers for what it does not read, and for what the other side does not.
    pub(crate) async fn connect_and_hold_little(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(1).unwrap();
        socket.set_send_buffer_size(1).unwrap();
        Self(BufReader::new(socket.connect(address).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// For sending and reading at once.
    pub(crate) fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        self.0.into_inner().into_split()
    }

    /// Where it sends from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.get_ref().local_addr().unwrap()
    }

    /// Sends no more.
    pub(crate) async fn end(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// Sends as much as the other side takes.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    pub(crate) async fn response(&mut self) -> Response {
        timeout(PATIENCE, self.read_response()).await.expect("there is an answer")
    }

    async fn read_response(&mut self) -> Response {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).await.unwrap(), 0, "the connection was closed in {head:?}");
        }
        let head = head.to_ascii_lowercase();
        let mut response = Response { status: head[9..12].parse().unwrap(), head, body: String::new() };
        if let Some(length) = response.header("content-length") {
            let mut body = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut body).await.unwrap();
            response.body = String::from_utf8(body).unwrap();
        }
        response
    }

    pub(crate) async fn ask(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request).await;
        self.response().await
    }

    /// Waits for the other side to close, and for nothing else to come before.
    pub(crate) async fn closed(&mut self) {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, self.0.read_to_end(&mut rest)).await.expect("the connection is closed");
        assert!(read.is_err() || rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }

    /// Whether the other side neither says anything nor closes for a while.
    pub(crate) async fn is_quiet_for(&mut self, while_: Duration) -> bool {
        timeout(while_, self.0.fill_buf()).await.is_err()
    }
}

pub(crate) fn token(body: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    sign_token(KEY, &SECRET.into(), body.as_bytes(), now.try_into().unwrap())
}

pub(crate) fn hmac(body: &str) -> String {
    sign_hmac(&SECRET.into(), body.as_bytes())
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// A webhook as a PlugNMeet server of today sends it.
pub(crate) fn webhook(body: &str) -> String {
    let token = token(body);
    request("POST", PATH, &[("Authorization", &token), ("Hash-Token", &token)], body)
}

/// The URL of a broker that is not there.
pub(crate) async fn no_broker() -> String {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}
