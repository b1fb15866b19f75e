//! `[ingress]`: the HTTP side, and the disk beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::read::{address, duration, list};
use super::secret_url::is_file;
use super::{ConfigError, check};

/// `[ingress]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ingress {
    /// Where webhooks are taken.
    #[serde(deserialize_with = "address")]
    pub address: SocketAddr,
    /// Where `/healthz`, `/readyz` and `/metrics` are shown: not for the world.
    #[serde(deserialize_with = "address")]
    pub admin_address: SocketAddr,
    /// The paths that webhooks are posted to; in the environment with commas between them.
    #[serde(deserialize_with = "list")]
    pub paths: Vec<String>,
    /// The longest body that is taken, in bytes.
    pub max_body_bytes: usize,
    /// The most connections at once.
    pub max_connections: usize,
    /// How long RabbitMQ may take to confirm one event before it is kept on disk instead.
    #[serde(deserialize_with = "duration")]
    pub confirm_timeout: Duration,
    /// How long what is under way may take to finish when the program is told to stop.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
    /// The certificate, where webhooks are taken in TLS.
    pub tls: Option<Tls>,
    /// Where events wait while RabbitMQ does not take them; the embedded queue needs none.
    pub spool: Spool,
}

/// `[ingress.spool]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// The file.
    pub path: PathBuf,
    /// The most that may wait in it, in bytes.
    pub max_bytes: u64,
    /// How much of its disk stays free, in bytes.
    pub min_free_bytes: u64,
}

/// `[ingress.tls]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// A PEM file of the certificate, and of those that lead from it to one that senders trust.
    pub certificate: PathBuf,
    /// A PEM file of its private key.
    pub key: PathBuf,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([0, 0, 0, 0], 8080)),
            admin_address: SocketAddr::from(([127, 0, 0, 1], 9090)),
            // The second is where the Django integration took them.
            paths: vec!["/webhooks/plugnmeet".into(), "/api/course/plugnmeet/webhook/".into()],
            max_body_bytes: 1024 * 1024,
            max_connections: 20_000,
            confirm_timeout: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(20),
            tls: None,
            spool: Spool::default(),
        }
    }
}

impl Default for Spool {
    fn default() -> Self {
        // PlugNMeet's webhooks have 4 KB: some 200,000 of them.
        Self { path: "data/spool.db".into(), max_bytes: 1 << 30, min_free_bytes: 256 << 20 }
    }
}

impl Ingress {
    /// What the URL of webhooks begins with: `https`, where they are taken in TLS.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let Ingress { paths, max_body_bytes, max_connections, confirm_timeout, tls, spool, .. } = self;
        for path in paths {
            check(path.starts_with('/'), "ingress.paths", path, "a path starts with /")?;
        }
        check(!paths.is_empty(), "ingress.paths", &"empty", "there is one at least")?;
        check(
            // A webhook has about 4 KB, and RabbitMQ 4 takes no message that is longer than 16 MiB.
            (16 * 1024..=16 * 1024 * 1024).contains(max_body_bytes),
            "ingress.max_body_bytes",
            max_body_bytes,
            "it is from 16384 to 16777216",
        )?;
        check(*max_connections > 0, "ingress.max_connections", max_connections, "it is 1 or more")?;
        check(!confirm_timeout.is_zero(), "ingress.confirm_timeout", &"0s", "it is longer than nothing")?;
        for (setting, path) in tls.iter().flat_map(|tls| [("certificate", &tls.certificate), ("key", &tls.key)]) {
            let is_named = !path.as_os_str().is_empty();
            check(is_named, &format!("ingress.tls.{setting}"), &"empty", "it is the path of a PEM file")?;
        }
        // SQLite takes the empty name for a database of its own, and deletes it in the end.
        let is_file = is_file(&spool.path);
        check(is_file, "ingress.spool.path", &spool.path.display(), "it is the path of a file on this machine")
    }
}
