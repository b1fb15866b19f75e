//! A stand-in for a PlugNMeet server, as small as the pipeline allows.
//!
//! - It answers the part of the `/auth` API that Rollcall asks, and the downloads, as a running plugNmeet-server
//!   2.4 was seen to: same bytes, same statuses, no `Range`.
//! - What may go wrong is data: [`StandIn::script`] says which [`Fault`] the next requests of an [`Endpoint`] get.
//! - Every request is written down: [`StandIn::requests`].
//! - [`webhook`] makes webhook bodies, and a [`Sender`] posts those of one room with the real server's habits.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use rollcall_ops::standin::{Endpoint, Fault, Recording, StandIn};
//!
//! let server = StandIn::start("key", &"secret".into()).await?;
//! server.add_recording(Recording::new("S1-1700000000000", "algebra", "S1", "/tmp/class.mp4"));
//! server.script(Endpoint::Download, [Fault::CutOff { after_bytes: 1000 }, Fault::Redirect]);
//! println!("plugnmeet.main.url is {}", server.url());
//! # Ok(())
//! # }
//! ```

mod answer;
mod api;
mod download;
mod fault;
mod sender;
mod token;
pub mod webhook;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use url::Url;

pub use fault::{Endpoint, Fault};
pub use sender::{Sender, Sent};

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A running stand-in on a free port of 127.0.0.1. It stops when it is dropped.
#[derive(Debug)]
pub struct StandIn {
    address: SocketAddr,
    server: Arc<Server>,
    accepting: JoinHandle<()>,
}

/// A recording that the server has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Its id, `<room sid>-<milliseconds>`.
    pub record_id: String,
    /// The room that was recorded.
    pub room_id: String,
    /// The room's session.
    pub room_sid: String,
    /// The recording's title, and the room's.
    pub title: String,
    /// What a download gives.
    pub content: Content,
    /// Where the server says that the file is: names chosen by another machine.
    pub file_path: String,
    /// When the recording was made.
    pub created_at: DateTime<Utc>,
    /// When the room was made.
    pub room_created_at: DateTime<Utc>,
    /// When the room ended; `None` while the class is still running.
    pub room_ended_at: Option<DateTime<Utc>>,
}

/// What a download gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// This file, streamed from the disk.
    File(PathBuf),
    /// This many zero bytes.
    Zeros(u64),
}

impl Recording {
    /// A recording of the file at `path`, made just now in a room that is still open.
    pub fn new(record_id: &str, room_id: &str, room_sid: &str, path: impl Into<PathBuf>) -> Self {
        let now = Utc::now();
        Self {
            record_id: record_id.to_owned(),
            room_id: room_id.to_owned(),
            room_sid: room_sid.to_owned(),
            title: room_id.to_owned(),
            content: Content::File(path.into()),
            file_path: webhook::file_path(room_sid, record_id),
            created_at: now,
            room_created_at: now,
            room_ended_at: None,
        }
    }
}

/// A request as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Where it went.
    pub endpoint: Endpoint,
    /// `GET`, `HEAD` or `POST`.
    pub method: Method,
    /// The recording asked for, as far as the request could be read.
    pub record_id: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// What the script gave it.
    pub fault: Fault,
}

impl StandIn {
    /// Starts a server with this API key and secret.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start(api_key: &str, secret: &SecretString) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = Arc::new(Server {
            address,
            api_key: api_key.to_owned(),
            secret: secret.clone(),
            state: Mutex::new(State::default()),
            held: Semaphore::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&server)));
        Ok(Self { address, server, accepting })
    }

    /// The server's own address, `http://127.0.0.1:<port>`.
    pub fn url(&self) -> Url {
        Url::parse(&format!("http://{}", self.address)).expect("a socket address makes a URL")
    }

    /// Where the object storage has a recording's file, to be had without a token.
    pub fn storage_url(&self, record_id: &str) -> String {
        download::storage_url(&self.server, record_id)
    }

    /// From now on the server has this recording; until then it answers "recording not found".
    pub fn add_recording(&self, recording: Recording) {
        self.server.state().recordings.insert(recording.record_id.clone(), recording);
    }

    /// What the next requests of `endpoint` get, one each, after what it was told before.
    pub fn script(&self, endpoint: Endpoint, faults: impl IntoIterator<Item = Fault>) {
        self.server.state().scripts.entry(endpoint).or_default().extend(faults);
    }

    /// Whether downloads honour `Range`, as a proxy in front may; a PlugNMeet server itself does not.
    pub fn honour_range(&self, honours: bool) {
        self.server.state().honours_range = honours;
    }

    /// Lets so many requests go that are [held](Fault::Held), or will be.
    pub fn let_go(&self, requests: usize) {
        self.server.held.add_permits(requests);
    }

    /// Whether downloads say which version of the file they are of; some proxies take that away.
    pub fn name_versions(&self, names: bool) {
        self.server.state().names_versions = names;
    }

    /// Whether it is a server from before `status_code`: it answers camelCase and knows only the old path for the info.
    pub fn be_old(&self, old: bool) {
        self.server.state().is_old = old;
    }

    /// How long a download token lives that is given from now on; half an hour unless told.
    pub fn token_lifetime(&self, lifetime: Duration) {
        self.server.state().token_lifetime = lifetime;
    }

    /// How far ahead its clock is, as the `Date` of what `/auth` answers shows; behind, where negative.
    pub fn clock_ahead(&self, ahead: TimeDelta) {
        self.server.state().clock_ahead = Some(ahead);
    }

    /// Every request so far, in order.
    pub fn requests(&self) -> Vec<Seen> {
        self.server.state().seen.clone()
    }

    /// How many requests `endpoint` has seen.
    pub fn count(&self, endpoint: Endpoint) -> usize {
        self.server.state().seen.iter().filter(|seen| seen.endpoint == endpoint).count()
    }

    /// A sender of one room's webhooks to `url`, signed with this server's key.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn sender(&self, url: Url) -> Result<Sender, reqwest::Error> {
        Sender::new(url, &self.server.api_key, &self.server.secret)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    api_key: String,
    secret: SecretString,
    state: Mutex<State>,
    /// As many permits as requests may go that are held.
    held: Semaphore,
}

#[derive(Debug)]
struct State {
    recordings: BTreeMap<String, Recording>,
    scripts: HashMap<Endpoint, VecDeque<Fault>>,
    seen: Vec<Seen>,
    honours_range: bool,
    names_versions: bool,
    is_old: bool,
    token_lifetime: Duration,
    clock_ahead: Option<TimeDelta>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            recordings: BTreeMap::new(),
            scripts: HashMap::new(),
            seen: Vec::new(),
            honours_range: false,
            names_versions: true,
            is_old: false,
            token_lifetime: Duration::from_mins(30),
            clock_ahead: None,
        }
    }
}

/// The connection is closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the stand-in was told to close the connection")]
struct Disconnect;

impl Server {
    fn state(&self) -> MutexGuard<'_, State> {
        // What a panicking test leaves behind is still a list of requests.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a request down, takes what the script has for it, and holds it if it is to be held.
    async fn take_fault(
        &self,
        endpoint: Endpoint,
        request: &hyper::http::request::Parts,
        record_id: Option<&str>,
    ) -> Fault {
        let fault = self.write_down(endpoint, request, record_id);
        if fault == Fault::Held {
            self.held.acquire().await.expect("the semaphore is never closed").forget();
        }
        fault
    }

    fn write_down(&self, endpoint: Endpoint, request: &hyper::http::request::Parts, record_id: Option<&str>) -> Fault {
        let range = request.headers.get(hyper::header::RANGE).and_then(|range| range.to_str().ok());
        let mut state = self.state();
        let fault = state.scripts.get_mut(&endpoint).and_then(VecDeque::pop_front).unwrap_or(Fault::None);
        state.seen.push(Seen {
            endpoint,
            method: request.method.clone(),
            record_id: record_id.map(str::to_owned),
            range: range.map(str::to_owned),
            fault: fault.clone(),
        });
        fault
    }
}

async fn accept(listener: TcpListener, server: Arc<Server>) {
    // Dropped with this task, and the connections with it.
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, Arc::clone(&server)));
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, server: Arc<Server>) {
    let service = service_fn(move |request| answer(Arc::clone(&server), request));
    // An error here is a client that went away, or a fault that was asked for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, Disconnect> {
    let path = request.uri().path();
    if path.starts_with("/auth/") {
        api::answer(&server, request).await
    } else if path.starts_with("/download/") || path.starts_with("/storage/") {
        download::answer(&server, request).await
    } else {
        Ok(download::text(hyper::StatusCode::NOT_FOUND, "not found"))
    }
}

#[cfg(test)]
mod tests;
