//! One connection, from its first byte to its end: HTTP/1.1, kept alive, and closed on who is too slow.
//!
//! hyper's own time-out for headers begins anew after each answer and would close the connection of every room in which
//! nothing happens for some seconds. So it is off, and [`Patient`], between hyper and the socket, knows what the peer is
//! expected to do next and how long that may take. Bodies have a time-out of their own, in [`crate::bodies`].
//!
//! Whatever else is expected, a peer takes its answers: hyper does not read while 16 of them wait, or [`MAX_BUFFER`] bytes, and so
//! would wait for ever for one that pipelines requests and reads nothing.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::Timeouts;
use crate::admission::Place;
use crate::answer::Answer;
use crate::tls::Stream;
use crate::webhook::Webhooks;

/// The longest head of a request that is read, in bytes; a webhook's is about 1 KiB, and proxies add to it. The buffer
/// grows this far for who sends more, and is what an idle connection costs.
const MAX_BUFFER: usize = 16 * 1024;

/// Answers the requests of one connection until its peer closes it, is too slow, or `shutdown`: then the request under
/// way is answered first.
pub(crate) async fn serve(
    stream: Stream,
    place: &Place,
    webhooks: &Webhooks,
    timeouts: Timeouts,
    shutdown: &CancellationToken,
) {
    let stage = Arc::new(StageCell::default());
    let mut stream = Patient::new(stream, timeouts, Arc::clone(&stage));
    if let Err(error) = converse(&mut stream, &stage, place, webhooks, shutdown).await {
        debug!(peer = %place.peer(), %error, "A connection ended early.");
    }
    if stage.get() == Stage::Refused {
        linger(&mut stream.stream, timeouts.linger).await;
    }
}

async fn converse(
    stream: &mut Patient<Stream>,
    stage: &StageCell,
    place: &Place,
    webhooks: &Webhooks,
    shutdown: &CancellationToken,
) -> hyper::Result<()> {
    let service = service_fn(|request| {
        stage.set(Stage::Request);
        async move {
            let answer = webhooks.answer(request, place).await;
            stage.set(Stage::after(answer));
            Ok::<_, Infallible>(answer.into_response())
        }
    });
    let connection = http1::Builder::new()
        .keep_alive(place.keep_alive())
        .header_read_timeout(None)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Reads on for a moment, for nothing: closing a socket with bytes unread resets the connection, and the reset may overtake
/// the answer that says why.
async fn linger(stream: &mut Stream, at_most: Duration) {
    let _ = timeout(at_most, tokio::io::copy(stream, &mut tokio::io::sink())).await;
}

/// What a connection's peer is expected to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To begin its first request.
    New,
    /// To end the headers of a request.
    Headers,
    /// To wait: its request is worked on.
    Request,
    /// To begin another request, some time.
    Idle,
    /// To begin another request, soon: the last one was of nobody that is known here.
    Stranger,
    /// To stop sending: its request was answered half read.
    Refused,
}

impl Stage {
    fn after(answer: Answer) -> Self {
        if answer.closes_connection() {
            Self::Refused
        } else if answer.is_to_a_server() {
            Self::Idle
        } else {
            Self::Stranger
        }
    }
}

/// The stage, shared between the service and the reader below it: both run in the connection's one task.
#[derive(Debug, Default)]
struct StageCell(AtomicU8);

impl StageCell {
    fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }

    fn get(&self) -> Stage {
        use Stage::{Headers, Idle, New, Refused, Request, Stranger};
        const STAGES: [Stage; 6] = [New, Headers, Request, Idle, Stranger, Refused];
        STAGES[usize::from(self.0.load(Ordering::Relaxed))]
    }
}

/// A stream that fails with [`io::ErrorKind::TimedOut`] when its peer does not do in time what is expected of it.
#[derive(Debug)]
struct Patient<S> {
    stream: S,
    stage: Arc<StageCell>,
    timeouts: Timeouts,
    timer: Pin<Box<Sleep>>,
    /// The stage that the timer runs for. It is set only when there is nothing to read.
    timed: Option<Stage>,
    /// Runs from when the peer took nothing more of what is written until it takes some.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(stream: S, timeouts: Timeouts, stage: Arc<StageCell>) -> Self {
        Self {
            stream,
            stage,
            timeouts,
            timer: Box::pin(sleep(timeouts.first_byte)),
            timed: Some(Stage::New),
            stuck: None,
        }
    }

    /// Something was read: if a request was awaited, it has begun.
    fn on_read(&mut self) {
        if matches!(self.stage.get(), Stage::New | Stage::Idle | Stage::Stranger) {
            self.stage.set(Stage::Headers);
            self.timed = None;
        }
    }

    /// Nothing is there to read: whether the peer has had its time.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stage = self.stage.get();
        let limit = match stage {
            Stage::New => self.timeouts.first_byte,
            Stage::Headers => self.timeouts.headers,
            Stage::Idle => self.timeouts.idle,
            Stage::Stranger => self.timeouts.stranger_idle,
            Stage::Request | Stage::Refused => return Poll::Pending,
        };
        if self.timed != Some(stage) {
            self.timed = Some(stage);
            self.timer.as_mut().reset(Instant::now() + limit);
        }
        self.timer.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    /// What came of a write: it fails where the peer has taken nothing for as long as it may.
    fn in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stuck = None;
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(self.timeouts.write)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_pending() {
            return this.poll_patience(cx);
        }
        this.on_read();
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.in_time(cx, written)
    }

    /// While a request is worked on hyper sees that there is nothing to read, and then does not look again when it has
    /// answered: so what may be awaited next is timed from here.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_patience(cx).is_ready() {
            // The next read tells.
            cx.waker().wake_by_ref();
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.in_time(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
