//! The address where a program shows how it is: `/healthz`, `/readyz` and `/metrics`. It is for operators, not for the
//! world.
//!
//! - `/healthz` answers 200 as long as the process answers at all: restart it when it does not;
//! - `/readyz` answers 200, or 503 and why: send it no traffic then, but leave it alone;
//! - `/metrics` is everything that the `metrics` macros counted since [`Admin::bind`], as Prometheus reads it;
//! - a [`Page`] is what else a program has to show.
//!
//! They are shown to who asks for an IP address, `localhost`, this machine's own name, or a name from the settings. A page that
//! somebody has open in a browser here can point a name of its own at this address, but cannot ask for any of these.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HOST, HeaderValue};
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

use crate::queue::host;

/// The buckets of every histogram whose name ends in `_seconds`: from a broker's confirm to ffmpeg at work on a lecture.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// How often samples are moved into their buckets; until then each takes 16 bytes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// How long to wait before trying again to take a connection, when the process is out of files, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is told to who asks for a name that is not known here. It does not repeat the name.
const OTHER_NAME: &str = "nothing is shown under this name: ask for the IP address or localhost, or add the name to \
                          ingress.admin_hosts, or workers.admin_hosts of a worker\n";

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
    names: Vec<String>,
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
        Ok(Self { listener, metrics, more: Vec::new(), names: vec!["localhost".into(), host()] })
    }

    /// Shows one more page.
    #[must_use]
    pub fn with(mut self, page: Page) -> Self {
        self.more.push(page);
        self
    }

    /// Answers under these names too.
    #[must_use]
    pub fn known_as(mut self, hosts: &[String]) -> Self {
        self.names.extend_from_slice(hosts);
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
        let pages = Arc::new(Pages { metrics: self.metrics, ready, more: self.more, names: self.names });
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
    names: Vec<String>,
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
        if !is_for(&self.names, request) {
            return text(StatusCode::MISDIRECTED_REQUEST, OTHER_NAME);
        }
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

/// Whether a request is for one of these names, or for an IP address. Who says no name at all is no browser.
fn is_for<B>(names: &[String], request: &Request<B>) -> bool {
    let told = request.headers().get_all(HOST).into_iter().map(|host| host.to_str().ok());
    let mut hosts = told.chain(request.uri().authority().map(|authority| Some(authority.as_str())));
    hosts.all(|host| host.is_some_and(|host| is_name_of(names, without_port(host))))
}

fn is_name_of(names: &[String], host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// `[::1]:9090` is for `::1`.
fn without_port(host: &str) -> &str {
    if let Some((ip, _)) = host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        return ip;
    }
    host.rsplit_once(':').map_or(host, |(host, _)| host)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shown(target: &str, hosts: &[&str]) -> bool {
        let mut request = Request::get(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        is_for(&["localhost".into(), "vm".into(), "rollcall.internal".into()], &request.body(()).unwrap())
    }

    #[test]
    fn pages_are_shown_under_addresses_and_known_names() {
        for host in
            ["127.0.0.1:9090", "127.0.0.1", "[::1]:9090", "[::1]", "localhost:9090", "LocalHost", "vm", "vm:9090"]
        {
            assert!(is_shown("/metrics", &[host]), "{host}");
        }
        assert!(is_shown("/metrics", &["rollcall.internal.:9090"]));
        assert!(is_shown("/metrics", &[]));
        for host in
            ["evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "", ":9090"]
        {
            assert!(!is_shown("/metrics", &[host]), "{host}");
        }
        assert!(!is_shown("/metrics", &["localhost", "evil.example"]));
        assert!(!is_shown("http://evil.example/metrics", &["localhost"]));
    }
}
