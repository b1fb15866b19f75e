//! Reads bodies: those that may be webhooks are kept, within one budget of memory for all, the others dropped as they come.
//!
//! A body that fits the connection's buffer, as a webhook does, comes in one piece and costs nothing beside it. A longer one
//! is given the memory for all of it before the rest is read, or waits: its sender is not read from, and notices that its
//! network is slow. Servers have half of the memory for themselves: whatever strangers announce, it is not theirs to wait for.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::admission::Place;

/// The limits, and what is left of the memory.
#[derive(Debug)]
pub(crate) struct Bodies {
    /// The longest that is taken.
    max_bytes: usize,
    /// How long one may take to arrive, and how long it waits for memory.
    timeout: Duration,
    /// Bytes for those who have signed before.
    servers: Semaphore,
    /// Bytes for everybody else.
    strangers: Semaphore,
}

/// A body, whole, and its memory for as long as this is there.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    pub(crate) bytes: Bytes,
    _memory: Option<SemaphorePermit<'a>>,
}

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("the body is longer than ingress.max_body_bytes")]
    TooLong,
    #[error("the body did not arrive whole: {0}")]
    CutOff(#[from] hyper::Error),
    #[error("other bodies have all of ingress.max_bodies_bytes")]
    NoMemory,
}

impl Bodies {
    /// `all_bytes` is the memory for all bodies together.
    pub(crate) fn new(max_bytes: usize, all_bytes: usize, timeout: Duration) -> Self {
        let half = || Semaphore::new(all_bytes / 2);
        Self { max_bytes, timeout, servers: half(), strangers: half() }
    }

    /// The whole body. `size` is what was announced of it, and grows where more than that is read.
    pub(crate) async fn keep(&self, mut body: Incoming, size: &mut u64, place: &Place) -> Result<Kept<'_>, BodyError> {
        self.check(*size)?;
        let first = self.in_time(next_piece(&mut body)).await?.unwrap_or_default();
        *size = (*size).max(first.len() as u64);
        self.check(*size)?;
        if body.is_end_stream() {
            return Ok(Kept { bytes: first, _memory: None });
        }
        // What is sent in chunks may be as long as is taken.
        let most = body.size_hint().exact().map_or(self.max_bytes, |rest| first.len() + capped(rest));
        let memory = self.memory(most, place).await?;
        let mut whole = BytesMut::with_capacity(most);
        whole.extend_from_slice(&first);
        let rest = async {
            while let Some(piece) = next_piece(&mut body).await? {
                *size = (*size).max((whole.len() + piece.len()) as u64);
                self.check(*size)?;
                whole.extend_from_slice(&piece);
            }
            Ok(())
        };
        self.in_time(rest).await?;
        Ok(Kept { bytes: whole.freeze(), _memory: Some(memory) })
    }

    /// Reads a body for nothing: what is left of one would cost its sender the connection. `size` as above.
    pub(crate) async fn discard(&self, mut body: Incoming, size: &mut u64) -> Result<(), BodyError> {
        self.check(*size)?;
        let all = async {
            let mut read = 0;
            while let Some(piece) = next_piece(&mut body).await? {
                read += piece.len() as u64;
                *size = (*size).max(read);
                self.check(read)?;
            }
            Ok(())
        };
        self.in_time(all).await
    }

    fn check(&self, size: u64) -> Result<(), BodyError> {
        if capped(size) > self.max_bytes { Err(BodyError::TooLong) } else { Ok(()) }
    }

    async fn memory(&self, bytes: usize, place: &Place) -> Result<SemaphorePermit<'_>, BodyError> {
        let budget = if place.is_a_servers() { &self.servers } else { &self.strangers };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let memory = timeout(self.timeout, budget.acquire_many(bytes)).await.map_err(|_| BodyError::NoMemory)?;
        Ok(memory.expect("the semaphore is never closed"))
    }

    async fn in_time<T>(&self, reading: impl Future<Output = Result<T, BodyError>>) -> Result<T, BodyError> {
        timeout(self.timeout, reading).await.unwrap_or(Err(BodyError::TooSlow))
    }
}

/// The next piece that is data; trailers are of no interest here.
async fn next_piece(body: &mut Incoming) -> Result<Option<Bytes>, BodyError> {
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            return Ok(Some(piece));
        }
    }
    Ok(None)
}

fn capped(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
