//! TLS for webhooks, where no proxy does it: the certificate and its key are read again when their files change, so that whoever
//! renews them need not stop anything.

use std::fs;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use rollcall_shared::config;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{info, warn};

/// How often the files are looked at: a certificate is renewed weeks before it ends.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The certificate that is shown to whoever comes, and where it is from.
pub(crate) struct Certificate {
    settings: config::Tls,
    files: Files,
    shown: watch::Sender<Arc<CertifiedKey>>,
    acceptor: Acceptor,
}

/// What stands in the two files.
#[derive(PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// Makes TLS of connections.
#[derive(Clone)]
pub(crate) struct Acceptor(TlsAcceptor);

/// A connection, in TLS or not.
#[derive(Debug)]
pub(crate) enum Stream {
    /// As it comes.
    Plain(TcpStream),
    /// In TLS, whose state is large.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// One cannot be read, is not what it is to be, or they do not belong together.
    pub(crate) fn read(settings: &config::Tls) -> anyhow::Result<Self> {
        let files = Files::read(settings)?;
        let shown = watch::Sender::new(Arc::new(files.parse().with_context(|| names(settings))?));
        let acceptor = Acceptor::showing(shown.subscribe())?;
        Ok(Self { settings: settings.clone(), files, shown, acceptor })
    }

    /// What makes TLS of connections with this certificate, whichever it is then.
    pub(crate) fn acceptor(&self) -> Acceptor {
        self.acceptor.clone()
    }

    /// Looks after the files, for ever. What cannot be used is told, and the certificate from before stays.
    pub(crate) async fn look_after(mut self) {
        let mut refused = None;
        loop {
            sleep(LOOK_AGAIN).await;
            // Whoever renews them may be at it: what cannot be read now is looked at again.
            let Ok(files) = Files::read(&self.settings) else { continue };
            if files == self.files || refused.as_ref() == Some(&files) {
                continue;
            }
            match files.parse() {
                Ok(certificate) => {
                    self.shown.send_replace(Arc::new(certificate));
                    (self.files, refused) = (files, None);
                    info!(certificate = %self.settings.certificate.display(), "The certificate was renewed.");
                }
                Err(error) => {
                    warn!(error = format!("{error:#}"), "A new certificate cannot be used: {}.", names(&self.settings));
                    refused = Some(files);
                }
            }
        }
    }
}

impl Files {
    fn read(settings: &config::Tls) -> anyhow::Result<Self> {
        let read = |setting: &str, path: &Path| {
            fs::read(path).with_context(|| format!("setting ingress.tls.{setting}: {} cannot be read", path.display()))
        };
        let config::Tls { certificate, key } = settings;
        Ok(Self { certificate: read("certificate", certificate)?, key: read("key", key)? })
    }

    fn parse(&self) -> anyhow::Result<CertifiedKey> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).context("no private key")?;
        Ok(CertifiedKey::from_der(chain, key, &provider())?)
    }
}

fn names(settings: &config::Tls) -> String {
    let config::Tls { certificate, key } = settings;
    format!(
        "ingress.tls.certificate ({}) and ingress.tls.key ({}) are to be PEM files of a certificate with its chain, and its key",
        certificate.display(),
        key.display()
    )
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificate as it is now.
#[derive(Debug)]
struct Shown(watch::Receiver<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.borrow().clone())
    }
}

impl Acceptor {
    fn showing(certificate: watch::Receiver<Arc<CertifiedKey>>) -> anyhow::Result<Self> {
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Shown(certificate)));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Agrees with the peer on TLS, which has `within` for it.
    pub(crate) async fn accept(&self, stream: TcpStream, within: Duration) -> io::Result<Stream> {
        let accepted =
            timeout(within, self.0.accept(stream)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        Ok(Stream::Tls(Box::new(accepted?)))
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
