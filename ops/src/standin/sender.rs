//! The sender of webhooks of one room, with the real one's habits.
//!
//! One kept-alive connection, one request at a time, in order; no time-out; the receiver's certificate is not
//! checked. At most two retries, after 1 s and 2 s, where the connection fails or the answer is 429 or a 5xx but 501;
//! a `Retry-After` on 429 or 503 is waited for instead.

use std::time::Duration;

use chrono::Utc;
use hyper::header::RETRY_AFTER;
use hyper::{HeaderMap, StatusCode};
use rollcall_shared::{signature, tls};
use secrecy::SecretString;
use url::Url;

use super::webhook::Webhook;

/// How long the real sender waits before each retry.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Sends the webhooks of one room.
#[derive(Debug)]
pub struct Sender {
    client: reqwest::Client,
    url: Url,
    api_key: String,
    secret: SecretString,
}

/// What became of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// How often it was posted, 1 to 3.
    pub attempts: usize,
    /// The last answer, or why there was none. A real server has forgotten the event now, whatever it is.
    pub answer: Result<StatusCode, String>,
}

impl Sent {
    /// Whether it was taken: any 2xx.
    pub fn is_accepted(&self) -> bool {
        self.answer.as_ref().is_ok_and(StatusCode::is_success)
    }
}

impl Sender {
    /// A sender to `url` of the server with this key and secret.
    ///
    /// # Errors
    /// The HTTP client cannot be set up.
    pub fn new(url: Url, api_key: &str, secret: &SecretString) -> Result<Self, reqwest::Error> {
        tls::use_ring();
        let client = reqwest::Client::builder()
            .user_agent("Go-http-client/1.1")
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(None)
            .tls_danger_accept_invalid_certs(true)
            .no_proxy()
            .build()?;
        Ok(Self { client, url, api_key: api_key.to_owned(), secret: secret.clone() })
    }

    /// Sends one webhook; the next has to wait until this one is through.
    pub async fn send(&mut self, webhook: &Webhook) -> Sent {
        // Signed once: what is sent again is the same to the last byte.
        let token = signature::sign_token(&self.api_key, &self.secret, &webhook.body, Utc::now().timestamp());
        let mut delays = RETRY_DELAYS.into_iter();
        let mut attempts = 1;
        loop {
            let (answer, retry_after) = self.post(webhook, &token).await;
            match delays.next() {
                Some(delay) if may_be_retried(&answer) => tokio::time::sleep(retry_after.unwrap_or(delay)).await,
                _ => return Sent { attempts, answer },
            }
            attempts += 1;
        }
    }

    async fn post(&self, webhook: &Webhook, token: &str) -> (Result<StatusCode, String>, Option<Duration>) {
        let request = self
            .client
            .post(self.url.clone())
            .header("Authorization", token)
            .header("Content-Type", "application/json")
            .header("Hash-Token", token)
            .body(webhook.body.clone());
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return (Err(chain(&error)), None),
        };
        let status = response.status();
        let retry_after = retry_after(status, response.headers());
        // The connection can be used again only when the answer has been read.
        match response.bytes().await {
            Ok(_) => (Ok(status), retry_after),
            Err(error) => (Err(chain(&error)), None),
        }
    }
}

fn may_be_retried(answer: &Result<StatusCode, String>) -> bool {
    answer.as_ref().map_or(true, |status| {
        *status == StatusCode::TOO_MANY_REQUESTS || (status.is_server_error() && *status != StatusCode::NOT_IMPLEMENTED)
    })
}

fn retry_after(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let said = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    let seconds = headers.get(RETRY_AFTER).filter(|_| said)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// An error and what caused it; reqwest's own text is only the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
