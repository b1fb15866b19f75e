//! Posting signed events, and which were accepted.

use std::net::SocketAddr;

use chrono::Utc;
use reqwest::{Client, Response, StatusCode};
use rollcall_shared::signature::{sign_hmac, sign_token};

use crate::installation::{Installation, Server};

/// How a webhook is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// As every real server does.
    Token,
    /// As the Django integration does.
    Hmac,
}

/// One server, posting.
#[derive(Debug, Clone)]
pub struct Sender {
    client: Client,
    url: String,
    keys: Server,
}

impl Sender {
    /// The server `name` of the installation, posting to an ingress of it.
    pub fn new(installation: &Installation, name: &str, ingress: SocketAddr) -> Self {
        Self::with(installation.keys(name).clone(), ingress)
    }

    /// A server with these keys.
    pub fn with(keys: Server, ingress: SocketAddr) -> Self {
        rollcall_shared::tls::use_ring();
        Self { client: Client::builder().build().unwrap(), url: format!("http://{ingress}/webhooks/plugnmeet"), keys }
    }

    /// The same server, posting to another ingress.
    pub fn to(mut self, ingress: SocketAddr) -> Self {
        self.url = format!("http://{ingress}/webhooks/plugnmeet");
        self
    }

    /// Posts a body, signed by a token as real servers do. Panics unless it is accepted.
    pub async fn post(&self, body: &str) {
        let (status, answer) = self.try_post(body, Scheme::Token).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    /// Posts a body; how it was answered.
    pub async fn try_post(&self, body: &str, scheme: Scheme) -> Result<(StatusCode, String), reqwest::Error> {
        let response = self.send(body, scheme).await?;
        Ok((response.status(), response.text().await?))
    }

    /// Posts a body; the answer with its headers.
    pub async fn send(&self, body: &str, scheme: Scheme) -> Result<Response, reqwest::Error> {
        let secret = self.keys.secret.as_str().into();
        let request = self.client.post(&self.url).header("Content-Type", "application/json").body(body.to_owned());
        let request = match scheme {
            Scheme::Token => {
                let token = sign_token(&self.keys.api_key, &secret, body.as_bytes(), Utc::now().timestamp());
                request.header("Authorization", &token).header("Hash-Token", token)
            }
            Scheme::Hmac => request.header("Hash-Token", sign_hmac(&secret, body.as_bytes())),
        };
        request.send().await
    }
}
