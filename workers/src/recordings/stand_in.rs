//! A PlugNMeet server for tests: says whatever it is told to, byte for byte.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use rollcall_shared::config::PlugNMeet;
use rollcall_shared::plugnmeet::api::Client;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What the server does with a request.
pub(super) enum Reply {
    /// Sends this and closes.
    Bytes(Vec<u8>),
    /// Sends the first, waits for a permit, sends the second and closes.
    Held(Vec<u8>, Arc<Semaphore>, Vec<u8>),
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

/// The server.
pub(super) struct StandIn {
    pub(super) settings: PlugNMeet,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl StandIn {
    /// A server that asks `reply` what to say to each request.
    pub(super) async fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = PlugNMeet {
            url: format!("http://{}", listener.local_addr().unwrap()).parse().unwrap(),
            api_key: "key".into(),
            api_secret: "hunter2".into(),
            previous_secret: None,
        };
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (reply, seen) = (Arc::new(reply), Arc::clone(&requests));
        tokio::spawn(async move {
            loop {
                let connection = listener.accept().await.unwrap().0;
                let (reply, seen) = (Arc::clone(&reply), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut connection = BufReader::new(connection);
                    let Some(request) = read(&mut connection).await else { return };
                    seen.lock().unwrap().push(request.clone());
                    // A client that has gone away is no news to a server.
                    let _ = answer(connection.into_inner(), reply(&request)).await;
                });
            }
        });
        Self { settings, requests }
    }

    pub(super) fn client(&self) -> Client {
        Client::new(&self.settings, std::time::Duration::from_secs(5)).unwrap()
    }

    /// How many requests had this in their path.
    pub(super) fn asked(&self, part: &str) -> usize {
        self.requests.lock().unwrap().iter().filter(|request| request.path.contains(part)).count()
    }
}

async fn read(connection: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        connection.read_line(&mut line).await.ok()?;
        match line.trim() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers: HashMap<_, _> = lines
        .iter()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
    connection.read_exact(&mut body).await.ok()?;
    Some(Request { path: lines.first()?.split(' ').nth(1)?.to_owned(), headers })
}

async fn answer(mut connection: TcpStream, reply: Reply) -> std::io::Result<()> {
    match reply {
        Reply::Bytes(bytes) => connection.write_all(&bytes).await?,
        Reply::Held(first, permits, second) => {
            connection.write_all(&first).await?;
            permits.acquire().await.unwrap().forget();
            connection.write_all(&second).await?;
        }
    }
    connection.shutdown().await
}

/// A whole answer.
pub(super) fn http(status: u16, headers: &str, body: &[u8]) -> Reply {
    Reply::Bytes([head(status, headers, body.len()).as_slice(), body].concat())
}

/// The beginning of an answer of which `length` bytes are to follow.
pub(super) fn head(status: u16, headers: &str, length: usize) -> Vec<u8> {
    format!("HTTP/1.1 {status} \r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

/// What the API says of a recording and of its token; `None` for everything else.
pub(super) fn api(request: &Request) -> Option<Reply> {
    let body = match request.path.as_str() {
        "/auth/recording/info" => {
            r#"{"status":true,"status_code":"SUCCESS","recording_info":{"record_id":"r-1","creation_time":"1795308819","metadata":{"title":"Physics فیزیک"}}}"#
        }
        "/auth/recording/getDownloadToken" => r#"{"status":true,"status_code":"SUCCESS","token":"eyJ.token"}"#,
        _ => return None,
    };
    Some(http(200, "", body.as_bytes()))
}
