//! The address where a program shows how it is: `/healthz`, `/readyz` and `/metrics`. It is for operators, not for the
//! world.
//!
//! - `/healthz` answers 200 as long as the process answers at all: restart it when it does not;
//! - `/readyz` answers 200, or 503 and why: send it no traffic then, but leave it alone;
//! - `/metrics` is everything that the `metrics` macros counted since [`Admin::bind`], as Prometheus reads it;
//! - a [`Page`] is what else a program has to show.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// The buckets of every histogram whose name ends in `_seconds`: from a broker's confirm to ffmpeg at work on a lecture.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// How often samples are moved into their buckets; until then each takes 16 bytes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait before trying again to take a connection, when the process is out of files, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why a program shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address cannot be listened on.
    #[error("cannot listen on the admin address {address}")]
    Bind {
        /// The address from the settings.
        address: SocketAddr,
        /// What the operating system says.
        source: io::Error,
    },
    /// Something else in this process counts already.
    #[error("metrics are set up already")]
    Metrics(#[from] BuildError),
}

/// A page of a program's own, in JSON.
pub struct Page {
    path: &'static str,
    show: Box<dyn Fn() -> serde_json::Result<Vec<u8>> + Send + Sync>,
}

impl Page {
    /// At `path`, `content` as it is when somebody asks. It is asked on the thread that answers, so it must not block.
    pub fn new<T: Serialize>(path: &'static str, content: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self { path, show: Box::new(move || serde_json::to_vec(&content())) }
    }
}

/// A bound admin address.
pub struct Admin {
    listener: TcpListener,
    metrics: PrometheusHandle,
    more: Vec<Page>,
}

impl Admin {
    /// Takes the address, and from here on counts what the `metrics` macros say: once in a process.
    ///
    /// # Errors
    /// The address cannot be listened on, or something in this process counts already.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address).await.map_err(|source| AdminError::Bind { address, source })?;
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)?
            .install_recorder()?;
        Ok(Self { listener, metrics, more: Vec::new() })
    }

    /// Shows one more page.
    #[must_use]
    pub fn with(mut self, page: Page) -> Self {
        self.more.push(page);
        self
    }

    /// The address, with the port that was chosen if the settings said 0.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `shutdown`. `ready` says how the program can do its work now, or why it cannot.
    pub async fn serve<R>(self, ready: R, shutdown: CancellationToken)
    where
        R: Fn() -> Result<String, String> + Send + Sync + 'static,
    {
        let pages = Arc::new(Pages { metrics: self.metrics, ready, more: self.more });
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = upkeep.tick() => pages.metrics.run_upkeep(),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(converse(stream, Arc::clone(&pages)));
                    }
                    Err(error) => {
                        warn!(%error, "The admin address cannot take a connection.");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}

struct Pages<R> {
    metrics: PrometheusHandle,
    ready: R,
    more: Vec<Page>,
}

async fn converse<R>(stream: TcpStream, pages: Arc<Pages<R>>)
where
    R: Fn() -> Result<String, String> + Send + Sync + 'static,
{
    let service = service_fn(|request| {
        let page = pages.page(&request);
        async { Ok::<_, Infallible>(page) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "An admin connection ended early.");
    }
}

impl<R: Fn() -> Result<String, String>> Pages<R> {
    fn page(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match (request.uri().path(), (self.ready)()) {
            ("/healthz", _) => text(StatusCode::OK, "alive\n"),
            ("/readyz", Ok(how)) => text(StatusCode::OK, format!("{how}\n")),
            ("/readyz", Err(why)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
            ("/metrics", _) => text(StatusCode::OK, self.metrics.render()),
            (path, _) => match self.more.iter().find(|page| page.path == path) {
                Some(page) => json((page.show)()),
                None => text(StatusCode::NOT_FOUND, self.list()),
            },
        }
    }

    fn list(&self) -> String {
        let more: String = self.more.iter().map(|page| format!(", {}", page.path)).collect();
        format!("there are /healthz, /readyz, /metrics{more}\n")
    }
}

fn json(content: serde_json::Result<Vec<u8>>) -> Response<Full<Bytes>> {
    match content {
        Ok(content) => typed(StatusCode::OK, "application/json", content),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    // `version` is that of Prometheus' text format; on the other pages it means nothing and harms nobody.
    typed(status, "text/plain; version=0.0.4; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
