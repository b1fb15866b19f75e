//! The ingress from its settings to its end: what `rollcall-ingress` runs, and `rollcall up` beside the workers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rollcall_shared::config::Settings;
use rollcall_shared::queue::Publisher;
use rollcall_shared::signature::Verifier;
use rollcall_shared::telemetry::admin::Page;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::Timeouts;
use crate::admission::Limits;
use crate::rejections::LastRejections;
use crate::server::{self, Server};
use crate::tls::Certificate;
use crate::webhook::Webhooks;

/// The open files that are not connections: listeners, the broker, the log, the admin's own connections.
const OTHER_FILES: usize = 100;

/// An ingress that has its address, and answers nobody yet.
pub struct Ingress {
    listener: TcpListener,
    address: SocketAddr,
    rejections: Arc<LastRejections>,
    certificate: Option<Certificate>,
}

impl Ingress {
    /// Takes the address, and reads the certificate if it is to answer in TLS.
    ///
    /// # Errors
    /// Somebody else has it, or it is not ours to take; the certificate cannot be used.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let certificate = settings.ingress.tls.as_ref().map(Certificate::read).transpose()?;
        let address = settings.ingress.address;
        let listener = server::listen(address).with_context(|| {
            format!("cannot listen on {address} (ingress.address): does another Rollcall run there?")
        })?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address, rejections: Arc::default(), certificate })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For its admin address: the requests that it refused last.
    pub fn rejections(&self) -> Page {
        self.rejections.page()
    }

    /// Takes webhooks in until `stop`; when this returns, everything that was accepted is durable.
    pub async fn run(self, settings: &Settings, publisher: &Publisher, stop: CancellationToken) {
        let verifier = Verifier::new(settings.server_keys());
        let timeouts = Timeouts::default();
        let webhooks =
            Webhooks::new(&settings.ingress, verifier, publisher.clone(), Arc::clone(&self.rejections), timeouts.body);
        let tls = self.certificate.as_ref().map(Certificate::acceptor);
        if let Some(certificate) = self.certificate {
            tokio::spawn(stop.clone().run_until_cancelled_owned(certificate.look_after()));
        }
        let limits = Limits {
            connections: connection_limit(settings.ingress.max_connections),
            strangers_per_address: settings.ingress.max_unsigned_per_address,
            trusted_proxies: settings.ingress.trusted_proxies.clone(),
        };
        let server = Server::new(webhooks, timeouts, limits).with_tls(tls);
        tokio::select! {
            () = server.run(self.listener, stop, settings.ingress.drain_timeout) => {}
            () = self.rejections.log_repeated() => {}
        }
        self.rejections.log(Duration::ZERO);
        publisher.close().await;
    }
}

/// As many connections as the settings say and the process may have files for, which is made as many as can be.
fn connection_limit(wanted: usize) -> usize {
    let files = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum }) {
        warn!(%error, "The limit of open files cannot be raised.");
    }
    let Some(files) = getrlimit(Resource::Nofile).current else { return wanted };
    let possible = usize::try_from(files).unwrap_or(usize::MAX).saturating_sub(OTHER_FILES).max(1);
    if possible < wanted {
        warn!(
            possible,
            wanted, "The limit of open files (ulimit -n) allows fewer connections than ingress.max_connections."
        );
    }
    wanted.min(possible)
}
