//! The most that HTTP gives: hyper reads the request, the signature is checked, and the answer is always the same.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use chrono::Utc;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rollcall_shared::signature::{Scheme, ServerKeys, Verifier};
use tokio::net::{TcpListener, TcpStream};

use crate::installation::Server;

/// What the benchmark's own program is called with to be the server.
pub const COMMAND: &str = "bare-server";

/// The server as a process of its own, as the ingress is one. It ends when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Process {
    /// Starts it for a server with these keys.
    ///
    /// # Errors
    /// It does not start.
    pub async fn start(keys: &Server) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([COMMAND, &keys.api_key, &keys.secret])
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the bare server")?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("it has no output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        Ok(Self { child, address: line.trim().parse().context("the bare server does not listen")? })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, which the load has noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the server: says where it listens, and answers until it is killed.
///
/// # Errors
/// It cannot listen.
pub async fn serve(api_key: String, secret: String) -> anyhow::Result<()> {
    let (secrets, schemes) = (vec![secret.into()], Scheme::ALL.into());
    let keys = ServerKeys { source: "main".into(), api_key, secrets, schemes };
    let verifier = Arc::new(Verifier::new([keys]));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(converse(stream, Arc::clone(&verifier)));
    }
}

async fn converse(stream: TcpStream, verifier: Arc<Verifier>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let service = service_fn(|request| {
        let verifier = Arc::clone(&verifier);
        async move { Ok::<_, Infallible>(answer(&verifier, request).await) }
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

async fn answer(verifier: &Verifier, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let header = |name| head.headers.get(name).map(|value: &hyper::header::HeaderValue| value.as_bytes());
    let (hash_token, authorization) = (header("hash-token"), header("authorization"));
    let mut response = Response::new(Full::from("{\"status\":\"ok\"}"));
    let is_good = match body.collect().await {
        Ok(body) => verifier.verify(hash_token, authorization, &body.to_bytes(), Utc::now().timestamp()).is_ok(),
        Err(_) => false,
    };
    if !is_good {
        *response.status_mut() = StatusCode::FORBIDDEN;
    }
    response
}
