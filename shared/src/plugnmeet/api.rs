//! Asking a PlugNMeet server back: its signed `/auth` API and its downloads.
//!
//! `/auth` answers HTTP 200 to nearly everything and says in the body how it went; a download answers like any web server, and
//! may come from object storage behind a redirect. What a failure means stands in one table, [`Error::kind`].
//!
//! A download's URL holds its token, so no URL is ever part of an error here.

use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED,
};
use reqwest::header::{RANGE, RETRY_AFTER, TRANSFER_ENCODING};
use reqwest::{Response, StatusCode, redirect};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use super::redirects::{Redirects, Refused};
use crate::config;
use crate::signature::sign_hmac;
use crate::tls;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a whole answer of `/auth` may take: a few hundred bytes, after a look into the server's database.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// The longest answer of `/auth` that is read, in bytes; real ones have less than two thousand.
const MAX_ANSWER: usize = 1024 * 1024;
/// How much of a server's own words is repeated, in characters.
const MAX_WORDS: usize = 200;

/// One PlugNMeet server, to be asked.
#[derive(Debug, Clone)]
pub struct Client {
    url: Url,
    api_key: String,
    api_secret: SecretString,
    /// The secret before that, which the server may know instead while it is being changed.
    previous_secret: Option<SecretString>,
    /// For signed requests: their headers must not follow a redirect to somebody else.
    api: reqwest::Client,
    /// For downloads, which need no header of ours and follow redirects.
    files: reqwest::Client,
}

impl Client {
    /// A client of `server`, which may be silent for `read_timeout` in the middle of an answer, and may redirect downloads to
    /// `redirect_hosts` although they are in a private network. No connection is made yet.
    ///
    /// # Errors
    /// TLS cannot be set up: there are no certificates on this machine, say.
    pub fn new(server: &config::PlugNMeet, read_timeout: Duration, redirect_hosts: &[String]) -> Result<Self, Error> {
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("rollcall/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(read_timeout)
                // A referrer would tell the object storage the token.
                .referer(false)
        };
        tls::use_ring();
        let redirects = Redirects::of(&server.url, redirect_hosts);
        let files = builder().redirect(redirects.policy()).dns_resolver(Arc::new(redirects));
        Ok(Self {
            url: server.url.clone(),
            api_key: server.api_key.clone(),
            api_secret: server.api_secret.clone(),
            previous_secret: server.previous_secret.clone(),
            api: builder().redirect(redirect::Policy::none()).build().map_err(Error::setup)?,
            files: files.build().map_err(Error::setup)?,
        })
    }

    /// What the server knows about a recording.
    ///
    /// # Errors
    /// See [`Error::kind`]; a recording that is still being made is [`Error::Refused`] with `NOT_FOUND`.
    pub async fn recording_info(&self, record_id: &str) -> Result<RecordingInfo, Error> {
        let request = RecordId { record_id };
        let answer: RecordingInfoAnswer = match self.ask("recording/info", &request).await {
            // What the path is called on older servers.
            Err(Error::Status { status: StatusCode::NOT_FOUND, .. }) => {
                self.ask("recording/recordingInfo", &request).await?
            }
            answer => answer?,
        };
        Ok(answer.into())
    }

    /// A token to download a recording with, good for half an hour at most.
    ///
    /// # Errors
    /// See [`Error::kind`].
    pub async fn download_token(&self, record_id: &str) -> Result<SecretString, Error> {
        let answer: TokenAnswer = self.ask("recording/getDownloadToken", &RecordId { record_id }).await?;
        Ok(answer.token.into())
    }

    /// The file that `token` stands for, from its beginning, or only the `rest` of it where the server can do that.
    ///
    /// # Errors
    /// See [`Error::kind`].
    pub async fn download(&self, token: &SecretString, rest: Option<&Rest>) -> Result<Download, Error> {
        let url = self.path(&["download", "recording", token.expose_secret()]);
        // The bytes as they are: a file packed on the way would have neither its own length nor its own hash.
        let mut request = self.files.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(rest) = rest {
            request = request.header(RANGE, format!("bytes={}-", rest.from)).header(IF_RANGE, rest.of.0.clone());
        }
        let response = request.send().await.map_err(Error::connection)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Download::new(response),
            _ => Err(Error::status(Asked::Download, &response, Verdict::default())),
        }
    }

    /// Asks for a room that nobody has, which changes nothing: how the server takes our key, and what its clock shows.
    pub async fn greet(&self) -> Greeting {
        let greeting = self.greet_with(&self.api_secret, GoodSecret::Current).await;
        match (&greeting.accepted, &self.previous_secret) {
            (Err(Error::Status { status: StatusCode::UNAUTHORIZED, .. }), Some(previous)) => {
                let by_previous = self.greet_with(previous, GoodSecret::Previous).await;
                // Where neither is good, what is said of the current one is what matters.
                if by_previous.accepted.is_ok() { by_previous } else { greeting }
            }
            _ => greeting,
        }
    }

    async fn greet_with(&self, secret: &SecretString, which: GoodSecret) -> Greeting {
        let begun = Utc::now();
        match self.send("room/isRoomActive", br#"{"room_id":"rollcall-doctor"}"#, secret).await {
            Ok(response) => {
                let clock = response.headers().get(DATE).and_then(|date| Clock::of(date, begun, Utc::now()));
                let accepted = match answer(response).await.and_then(|body| parse::<Verdict>(&body)) {
                    // Whatever it says of the room, it has taken the signature.
                    Ok(_) | Err(Error::Refused { .. }) => Ok(which),
                    Err(error) => Err(error),
                };
                Greeting { accepted, clock }
            }
            Err(error) => Greeting { accepted: Err(error), clock: None },
        }
    }

    async fn ask<A: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<A, Error> {
        let body = serde_json::to_vec(request).expect("a struct of strings always serialises");
        let answer = self.post(path, &body, &self.api_secret).await;
        let answer = match (answer, &self.previous_secret) {
            (Err(Error::Status { status: StatusCode::UNAUTHORIZED, .. }), Some(previous)) => {
                self.post(path, &body, previous).await
            }
            (answer, _) => answer,
        };
        parse(&answer?)
    }

    /// Posts a request that is signed with `secret`; the body of an answer with HTTP 200.
    async fn post(&self, path: &str, body: &[u8], secret: &SecretString) -> Result<Vec<u8>, Error> {
        answer(self.send(path, body, secret).await?).await
    }

    async fn send(&self, path: &str, body: &[u8], secret: &SecretString) -> Result<Response, Error> {
        self.api
            .post(self.path(&[&["auth"], path.split('/').collect::<Vec<_>>().as_slice()].concat()))
            .timeout(ANSWER_TIMEOUT)
            .header(CONTENT_TYPE, "application/json")
            .header("API-KEY", &self.api_key)
            .header("HASH-SIGNATURE", sign_hmac(secret, body))
            .body(body.to_vec())
            .send()
            .await
            .map_err(Error::connection)
    }

    /// The server's address, which may have a path of its own, and these segments.
    fn path(&self, segments: &[&str]) -> Url {
        let mut url = self.url.clone();
        url.path_segments_mut()
            .expect("http and https URLs have segments, and the settings allow no others")
            .pop_if_empty()
            .extend(segments);
        url
    }
}

/// The body of an answer of `/auth` with HTTP 200.
async fn answer(mut response: Response) -> Result<Vec<u8>, Error> {
    let body = read(&mut response).await?;
    if response.status() != StatusCode::OK {
        let verdict = serde_json::from_slice(&body).unwrap_or_default();
        return Err(Error::status(Asked::Api, &response, verdict));
    }
    Ok(body)
}

/// The whole body, if it is not longer than an answer can be.
async fn read(response: &mut Response) -> Result<Vec<u8>, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Error::connection)? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return Err(Error::Unreadable(format!("it is longer than {MAX_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// What an answer of `/auth` with HTTP 200 says.
fn parse<A: DeserializeOwned>(body: &[u8]) -> Result<A, Error> {
    // Of serde's message only the place: the text may repeat a token.
    let unreadable = |error: serde_json::Error| {
        Error::Unreadable(format!("{:?} error in line {} column {}", error.classify(), error.line(), error.column()))
    };
    let verdict: Verdict = serde_json::from_slice(body).map_err(unreadable)?;
    if verdict.status {
        serde_json::from_slice(body).map_err(unreadable)
    } else {
        Err(Error::Refused { code: shorten(&verdict.status_code), message: shorten(&verdict.msg) })
    }
}

fn shorten(words: &str) -> String {
    words.chars().filter(|char| !char.is_control()).take(MAX_WORDS).collect()
}

#[derive(Serialize)]
struct RecordId<'a> {
    record_id: &'a str,
}

/// What every answer of `/auth` has; older servers say no `status_code`.
#[derive(Default, Deserialize)]
struct Verdict {
    #[serde(default)]
    status: bool,
    #[serde(default)]
    msg: String,
    #[serde(default, alias = "statusCode")]
    status_code: String,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: String,
}

#[derive(Deserialize)]
struct RecordingInfoAnswer {
    #[serde(alias = "recordingInfo")]
    recording_info: AboutRecording,
    #[serde(default, alias = "roomInfo")]
    room_info: Option<AboutRoom>,
}

#[derive(Deserialize)]
struct AboutRecording {
    #[serde(default, alias = "creationTime", deserialize_with = "integer")]
    creation_time: Option<i64>,
    #[serde(default)]
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    title: String,
}

#[derive(Deserialize)]
struct AboutRoom {
    #[serde(default, alias = "roomTitle")]
    room_title: String,
}

/// protojson writes 64-bit integers as strings, older servers wrote numbers; zero is how it says "none".
fn integer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Integer {
        Number(i64),
        Text(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Integer::Number(number)) => Some(number),
        Some(Integer::Text(text)) => text.parse().ok(),
        None => None,
    }
    .filter(|number| *number != 0))
}

/// What a server knows about a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordingInfo {
    /// The recording's own title, or else its room's.
    pub title: Option<String>,
    /// When the server made it.
    pub created_at: Option<DateTime<Utc>>,
}

impl From<RecordingInfoAnswer> for RecordingInfo {
    fn from(answer: RecordingInfoAnswer) -> Self {
        let own = answer.recording_info.metadata.map(|metadata| metadata.title);
        let room = answer.room_info.map(|room| room.room_title);
        Self {
            title: [own, room].into_iter().flatten().find(|title| !title.trim().is_empty()),
            created_at: answer.recording_info.creation_time.and_then(|seconds| DateTime::from_timestamp(seconds, 0)),
        }
    }
}

/// How a server takes a harmless request.
#[derive(Debug)]
pub struct Greeting {
    /// Which secret it takes, or why it takes none.
    pub accepted: Result<GoodSecret, Error>,
    /// What its clock shows; `None` where its answer does not say.
    pub clock: Option<Clock>,
}

/// Which of the settings' secrets a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoodSecret {
    /// `api_secret`
    Current,
    /// `previous_secret`, and not the other.
    Previous,
}

/// How far a server's clock is ahead of this machine's, as near as its `Date` tells, which is cut to seconds and read somewhere
/// between a request and its answer. What is negative is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// At least so far.
    pub at_least: TimeDelta,
    /// At most so far.
    pub at_most: TimeDelta,
}

impl Clock {
    /// The clock of a `Date` that came in an answer to what was asked then; `None` where it is no date.
    pub fn of(date: &HeaderValue, asked: DateTime<Utc>, answered: DateTime<Utc>) -> Option<Self> {
        let date = DateTime::parse_from_rfc2822(date.to_str().ok()?).ok()?.to_utc();
        Some(Self { at_least: date - answered, at_most: date + TimeDelta::seconds(1) - asked })
    }
}

/// The part of a file that is still wanted.
#[derive(Debug, Clone)]
pub struct Rest {
    /// How many bytes are there already.
    pub from: u64,
    /// Which file they are of.
    pub of: Version,
}

/// What a server calls this very content of a file: its strong `ETag`, or when it was last changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version(HeaderValue);

impl Version {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let strong = headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"));
        strong.or_else(|| headers.get(LAST_MODIFIED)).cloned().map(Self)
    }
}

/// A file on its way.
#[derive(Debug)]
pub struct Download {
    response: Response,
    /// Where in the file the bytes begin: 0, unless the server gives only the rest that was asked for.
    pub start: u64,
    /// How long the whole file is, in bytes. Where the server does not say, the encoding at least tells its end from a
    /// connection that was cut.
    pub length: Option<u64>,
    /// What to ask for the rest of it with, if anything.
    pub version: Option<Version>,
}

impl Download {
    fn new(response: Response) -> Result<Self, Error> {
        let version = Version::of(response.headers());
        let (start, length) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(content_range);
            range.ok_or_else(|| Error::Unreadable("206 without a Content-Range".into()))?
        } else {
            (0, response.content_length())
        };
        if length.is_none() && !response.headers().contains_key(TRANSFER_ENCODING) {
            return Err(Error::Endless);
        }
        Ok(Self { response, start, length, version })
    }

    /// The next bytes; `None` at the end of the file.
    ///
    /// # Errors
    /// The connection was lost, or was silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        self.response.chunk().await.map_err(Error::connection)
    }
}

/// Start and whole length of `bytes 5-9/10`.
fn content_range(value: &HeaderValue) -> Option<(u64, Option<u64>)> {
    let (range, length) = value.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, length.parse().ok()))
}

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot be made.
    #[error("the HTTP client cannot be set up")]
    Setup(#[source] reqwest::Error),
    /// No connection, none in time, or a connection that was lost or silent for too long.
    #[error("no answer, or not all of it")]
    Connection(#[source] reqwest::Error),
    /// A redirect that is not followed.
    #[error("the server redirects the download {0}")]
    Redirect(Refused),
    /// An HTTP status that is no success.
    #[error("the server answers {asked} with {status}{}", said(message))]
    Status {
        /// What was asked.
        asked: Asked,
        /// The status.
        status: StatusCode,
        /// PlugNMeet's `status_code`; empty on older servers, and where something else has answered.
        code: String,
        /// What the server says about it, if it does.
        message: String,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// HTTP 200, and in the body a no.
    #[error("the server refuses ({code}){}", said(message))]
    Refused {
        /// PlugNMeet's `status_code`; empty on older servers.
        code: String,
        /// What the server says about it.
        message: String,
    },
    /// HTTP 200, and in the body nothing that PlugNMeet says: a proxy in front of it has spoken.
    #[error("the answer is not PlugNMeet's: {0}")]
    Unreadable(String),
    /// Neither a length nor chunks: a file that was cut off could not be told from a whole one.
    #[error("the server does not say where the file ends (neither Content-Length nor chunks)")]
    Endless,
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message:?}") }
}

/// Which of a server's two sides was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// `/auth`
    Api,
    /// `/download`, or the object storage it redirects to.
    Download,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Api => "the request",
            Self::Download => "the download",
        })
    }
}

/// Whether the same request may succeed later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It may.
    Transient,
    /// It will not, as long as nobody changes something.
    Permanent,
}

impl Error {
    /// Whether to ask again later: the one table of what a failure of PlugNMeet's means.
    pub fn kind(&self) -> Kind {
        use Kind::{Permanent, Transient};
        match self {
            Self::Setup(_) | Self::Redirect(_) => Permanent,
            // Time-outs, refused and lost connections, and what a proxy says while the server behind it is away.
            Self::Connection(_) | Self::Unreadable(_) | Self::Endless => Transient,
            Self::Status { asked, status, .. } => match (asked, status.as_u16()) {
                (_, 408 | 425 | 429 | 500..) => Transient,
                // The token has run out (403 is how object storage says so), or the rest of a file that has changed was
                // asked for: the next attempt has a fresh token and begins anew.
                (Asked::Download, 401 | 403 | 416) => Transient,
                // 401: key or secret is wrong, perhaps only while it is being changed. 404: what a proxy in front says
                // while the server restarts.
                (Asked::Api, 401 | 403 | 404) => Transient,
                // 404: a token was given and the file is gone.
                (Asked::Api | Asked::Download, _) => Permanent,
            },
            Self::Refused { code, .. } => match code.as_str() {
                "INVALID_PARAMETERS" | "MISSING_REQUIRED_PARAMETER" | "PERMISSION_DENIED" => Permanent,
                // NOT_FOUND is what a recording is until it has been transcoded; older servers give no code for it.
                // INTERNAL_SERVER_ERROR, CONFLICT and what newer servers think of may pass.
                _ => Transient,
            },
        }
    }

    /// How long the server wants to be left alone, if it says so.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    fn setup(error: reqwest::Error) -> Self {
        Self::Setup(error.without_url())
    }

    fn connection(error: reqwest::Error) -> Self {
        match refused_redirect(&error) {
            Some(refused) => Self::Redirect(refused.clone()),
            None => Self::Connection(error.without_url()),
        }
    }

    fn status(asked: Asked, response: &Response, verdict: Verdict) -> Self {
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| wait(value, Utc::now()));
        let (code, message) = (shorten(&verdict.status_code), shorten(&verdict.msg));
        Self::Status { asked, status: response.status(), code, message, retry_after }
    }
}

/// Both the policy and the look-up of names tell it from within the client.
fn refused_redirect(error: &reqwest::Error) -> Option<&Refused> {
    std::iter::successors(error.source(), |&error| error.source()).find_map(|error| error.downcast_ref())
}

/// `Retry-After` is a number of seconds or a date.
fn wait(retry_after: &HeaderValue, now: DateTime<Utc>) -> Option<Duration> {
    let text = retry_after.to_str().ok()?;
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text).ok()?;
    Some((date.to_utc() - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests;
