//! `[ingress]`: the HTTP side, and the disk beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::read::{address, duration, list, networks};
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
    /// The names that it is asked for by, beside `localhost` and this machine's own: in the environment with commas between
    /// them.
    #[serde(deserialize_with = "list")]
    pub admin_hosts: Vec<String>,
    /// The paths that webhooks are posted to; in the environment with commas between them.
    #[serde(deserialize_with = "list")]
    pub paths: Vec<String>,
    /// The longest body that is taken, in bytes.
    pub max_body_bytes: usize,
    /// The memory for bodies that are too long for their connection's buffer, all together, in bytes.
    pub max_bodies_bytes: usize,
    /// The most connections at once.
    pub max_connections: usize,
    /// The most of them from one address, of IPv6 one /64, that have never shown a good signature.
    pub max_unsigned_per_address: usize,
    /// The proxies, by address or network, that are believed where a request comes from; in the environment with commas
    /// between them.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
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
            admin_hosts: Vec::new(),
            // The second is where the Django integration took them.
            paths: vec!["/webhooks/plugnmeet".into(), "/api/course/plugnmeet/webhook/".into()],
            max_body_bytes: 1024 * 1024,
            max_bodies_bytes: 64 * 1024 * 1024,
            max_connections: 20_000,
            max_unsigned_per_address: 500,
            trusted_proxies: Vec::new(),
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
        let Ingress { max_bodies_bytes, max_unsigned_per_address, .. } = self;
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
        check(
            *max_bodies_bytes / 4 >= *max_body_bytes,
            "ingress.max_bodies_bytes",
            max_bodies_bytes,
            "it is four times ingress.max_body_bytes or more",
        )?;
        check(*max_connections > 0, "ingress.max_connections", max_connections, "it is 1 or more")?;
        check(
            *max_unsigned_per_address > 0,
            "ingress.max_unsigned_per_address",
            max_unsigned_per_address,
            "it is 1 or more: a server's connection too has no signature at first",
        )?;
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
