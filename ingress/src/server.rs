//! Accepts connections within their limit, and drains them when told to stop.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use crate::admission::{Admission, Limits, Place};
use crate::metrics;
use crate::tls::{Acceptor, Stream};
use crate::webhook::Webhooks;
use crate::{Timeouts, connection};

/// How long to wait before trying again to take a connection when there are no files or no memory for it: some are free
/// as soon as another connection ends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections may wait to be accepted; beyond that the kernel lets a sender try again, after a second. As much as
/// it allows by itself (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;
/// What the kernel keeps of answers that a connection's peer does not read, in bytes; it doubles it. It would keep 4 MB.
const SEND_BUFFER: u32 = 16 * 1024;
/// What it keeps of requests that are not read yet; by itself it would go up to 6 MB. A webhook has about 4 KB.
const RECEIVE_BUFFER: u32 = 64 * 1024;

/// Takes webhooks in from as many connections as may be.
///
/// When all places are taken, somebody goes who has not signed (see `admission`). Where servers themselves have nearly all of
/// them, in the last tenth, connections are closed after one answer; when they have all, new ones wait for one of those to
/// end, milliseconds later as a rule. PlugNMeet opens another connection for its next event and has no time-out while it
/// waits, whereas a 503 would hold up its room for as long as `Retry-After` says, and after the third lose the event.
pub struct Server {
    webhooks: Webhooks,
    /// Where connections are in TLS.
    tls: Option<Acceptor>,
    timeouts: Timeouts,
    admission: Arc<Admission>,
}

/// Listens with buffers that are small: a stranger has them too.
///
/// # Errors
/// Somebody else has the address, or it is not ours to take.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    // What is accepted inherits them.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Server {
    /// A server for as many connections as the limits say.
    pub fn new(webhooks: Webhooks, timeouts: Timeouts, limits: Limits) -> Self {
        Self { webhooks, tls: None, timeouts, admission: Admission::new(limits) }
    }

    /// The same server, for connections in TLS only, if there is an acceptor.
    pub(crate) fn with_tls(self, tls: Option<Acceptor>) -> Self {
        Self { tls, ..self }
    }

    /// Answers until `shutdown`, then lets what is under way end, for up to `drain_timeout`.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken, drain_timeout: Duration) {
        let server = Arc::new(self);
        let connections = TaskTracker::new();
        while let Some((stream, place)) = shutdown.run_until_cancelled(server.accept(&listener)).await {
            connections.spawn(Arc::clone(&server).serve(stream, place, shutdown.clone()));
        }
        // Senders are refused from here on, and come back to whoever listens next.
        drop(listener);
        connections.close();
        info!(connections = connections.len(), "The ingress takes no more connections and drains those it has.");
        if timeout(drain_timeout, connections.wait()).await.is_err() {
            warn!(connections = connections.len(), "Some requests were not answered within ingress.drain_timeout.");
        }
    }

    /// The next connection, when there is a place for it.
    async fn accept(&self, listener: &TcpListener) -> (TcpStream, Place) {
        let (stream, peer) = accept(listener).await;
        // On `[::]` somebody from 127.0.0.1 comes from ::ffff:127.0.0.1.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        (stream, self.admission.admit(peer).await)
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, place: Place, shutdown: CancellationToken) {
        // An answer is one small packet, and the room's next event waits for it.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(peer = %place.peer(), %error, "A connection was gone before it began.");
            return;
        }
        let served = async {
            let stream = match &self.tls {
                None => Stream::Plain(stream),
                Some(tls) => match shutdown.run_until_cancelled(tls.accept(stream, self.timeouts.headers)).await {
                    Some(Ok(stream)) => stream,
                    Some(Err(error)) => {
                        return debug!(peer = %place.peer(), %error, "A connection did not come to TLS.");
                    }
                    None => return,
                },
            };
            connection::serve(stream, &place, &self.webhooks, self.timeouts, &shutdown).await;
        };
        place.closed().run_until_cancelled(served).await;
    }
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
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
