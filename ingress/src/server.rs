//! Accepts connections within their limit, and drains them when told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::metrics::{self, OpenConnection};
use crate::tls::{Acceptor, Stream};
use crate::webhook::Webhooks;
use crate::{Timeouts, connection};

/// How long to wait before trying again to take a connection when there are no files or no memory for it: some are free
/// as soon as another connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes webhooks in from as many connections as may be.
///
/// Where the limit is near, in its last tenth, connections are closed after one answer; at the limit itself, new ones wait in
/// the kernel's queue for one of those to end, milliseconds later as a rule. PlugNMeet opens another connection for its
/// next event and has no time-out while it waits, whereas a 503 would hold up its room for as long as `Retry-After` says, and
/// after the third lose the event.
pub struct Server {
    webhooks: Webhooks,
    /// Where connections are in TLS.
    tls: Option<Acceptor>,
    timeouts: Timeouts,
    /// How many connections there may be at once.
    max_connections: usize,
    /// How many of them are not kept alive.
    passing: usize,
}

impl Server {
    /// A server for at most `max_connections` at once.
    pub fn new(webhooks: Webhooks, timeouts: Timeouts, max_connections: usize) -> Self {
        Self { webhooks, tls: None, timeouts, max_connections, passing: (max_connections / 10).max(1) }
    }

    /// The same server, for connections in TLS only, if there is an acceptor.
    pub(crate) fn with_tls(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Answers until `shutdown`, then lets what is under way end, for up to `drain_timeout`.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken, drain_timeout: Duration) {
        let server = Arc::new(self);
        let connections = TaskTracker::new();
        let slots = Arc::new(Semaphore::new(server.max_connections));
        while let Some((stream, peer, slot)) = shutdown.run_until_cancelled(accept(&listener, &slots)).await {
            let keep_alive = slots.available_permits() >= server.passing;
            connections.spawn(Arc::clone(&server).serve(stream, peer, slot, keep_alive, shutdown.clone()));
        }
        // Senders are refused from here on, and come back to whoever listens next.
        drop(listener);
        connections.close();
        info!(connections = connections.len(), "The ingress takes no more connections and drains those it has.");
        if timeout(drain_timeout, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "Some requests were not answered within ingress.drain_timeout.");
        }
    }

    async fn serve(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        _slot: OwnedSemaphorePermit,
        keep_alive: bool,
        shutdown: CancellationToken,
    ) {
        let _counted = OpenConnection::new();
        // An answer is one small packet, and the room's next event waits for it.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "A connection was gone before it began.");
            return;
        }
        let stream = match &self.tls {
            None => Stream::Plain(stream),
            Some(tls) => match shutdown.run_until_cancelled(tls.accept(stream, self.timeouts.headers)).await {
                Some(Ok(stream)) => stream,
                Some(Err(error)) => return debug!(%peer, %error, "A connection did not come to TLS."),
                None => return,
            },
        };
        connection::serve(stream, peer, &self.webhooks, self.timeouts, keep_alive, &shutdown).await;
    }
}

/// The next connection, when there is room for one.
async fn accept(listener: &TcpListener, slots: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, slot),
            Err(error) if is_the_peers(&error) => debug!(%error, "A connection was gone before it was accepted."),
            Err(error) => {
                metrics::accept_failed();
                error!(%error, "No connection can be accepted for now.");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an error of `accept` concerns that one connection only.
fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
