//! The queue in a file on this machine: for one machine, with nothing to install.
//!
//! - [`file`](mod@file): the SQLite file, its schema, and what can be wrong with it;
//! - [`writer`]: the one task of a process that writes, many writes to a transaction;
//! - [`messages`]: the statements;
//! - [`holder`]: which processes are alive, and so whose deliveries come back;
//! - [`consumer`]: deliveries out;
//! - [`drain`]: messages out for somebody else than their worker.
//!
//! Several processes may share the file. It has to be on a disk of the machine: SQLite's log, and the locks by which a
//! process that died is told from one that is slow, are the kernel's.
//!
//! A row of the table `message` is in the queue that its column `queue` names, by the names that the queues have on RabbitMQ:
//! `<worker>`, `<worker>.retry` (until it is due), `<worker>.suspect`, `<worker>.dead`. The rows are given out in the order
//! of `seq`; whatever goes to another queue, or to the end of its own, gets a new one. A row in `lease` says who has it. A worker
//! reads its own queue from where it was, so a row of that is never let go of in its place: whoever has it deletes or moves it.

mod consumer;
mod drain;
mod file;
pub(super) mod holder;
pub(super) mod messages;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::OnceCell;

use self::consumer::Queues;
use self::drain::FileDrain;
pub(super) use self::file::File;
pub(super) use self::holder::Holder;
use self::messages::InQueue;
pub(super) use self::messages::Stored;
pub(super) use self::writer::{Limits, Store, StoreError};
use super::drain::{Drain, Drained};
use super::{
    Backend, Consumer, Depth, Depths, Inspection, Message, Publish, PublishError, QueueError, SendTo, Subscription,
    inspection,
};
use crate::config::{self, Settings};
use crate::event::WorkerName;

/// Where a message goes that no worker wants.
const UNROUTED: &str = "unrouted";

/// How much of the disk is left to the workers, in bytes: what is full with events cannot be worked off.
const MIN_FREE: u64 = 64 * 1024 * 1024;

/// A queue file, opened once for all that this process does with it.
pub(super) struct Embedded {
    path: PathBuf,
    store: OnceCell<Arc<Store>>,
}

impl Embedded {
    /// The queue in the file at `path`, which is made with its folder where it is not there.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, store: OnceCell::new() }
    }

    async fn store(&self) -> Result<&Arc<Store>, QueueError> {
        self.store
            .get_or_try_init(|| async {
                let file = File::open(&self.path).await?;
                Ok(Arc::new(Store::start(file, Limits { max_bytes: None, min_free_bytes: MIN_FREE })))
            })
            .await
    }
}

impl Backend for Embedded {
    fn publisher<'a>(&'a self, _: &'a config::Ingress) -> BoxFuture<'a, Result<Box<dyn Publish>, QueueError>> {
        Box::pin(async { Ok(Box::new(Publisher(self.store().await?.clone())) as Box<dyn Publish>) })
    }

    fn consumer(&self, subscription: Subscription) -> BoxFuture<'_, Result<Consumer, QueueError>> {
        Box::pin(async { consumer::start(self.store().await?.clone(), subscription).await })
    }

    fn sender(&self) -> BoxFuture<'_, Result<Box<dyn SendTo>, QueueError>> {
        Box::pin(async { Ok(Box::new(Publisher(self.store().await?.clone())) as Box<dyn SendTo>) })
    }

    fn drain<'a>(&'a self, drained: &'a Drained) -> BoxFuture<'a, Result<Drain, QueueError>> {
        Box::pin(async { Ok(Drain::new(FileDrain::open(self.store().await?.clone(), drained).await?)) })
    }

    fn depths<'a>(&'a self, _: &'a Settings) -> BoxFuture<'a, Result<Depths, QueueError>> {
        Box::pin(async {
            let queues = match File::find(&self.path).await? {
                Some(file) => {
                    let holders = file.holders();
                    let queues =
                        messages::depths(&mut file.reader().await?, |name| holder::is_gone(&holders, name)).await;
                    queues.map_err(|error| file.unusable(&error))?
                }
                None => Vec::new(),
            };
            Ok(Depths {
                workers: WorkerName::ALL.map(|worker| depth(worker, &queues)).into(),
                unrouted: queues.iter().find(|queue| queue.name == UNROUTED).map_or(0, |queue| queue.messages),
            })
        })
    }

    /// A file that is not there is not made: whoever makes it owns it, and that is to be Rollcall's user.
    fn inspect<'a>(&'a self, _: &'a Settings) -> BoxFuture<'a, Result<Inspection, QueueError>> {
        Box::pin(async {
            let path = self.path.clone();
            Ok(match File::find(&path).await? {
                Some(_) => {
                    let free_bytes = writer::free_bytes(&path);
                    Inspection::File(inspection::File { path, free_bytes, needed_bytes: MIN_FREE })
                }
                None => Inspection::NoFile(path),
            })
        })
    }

    /// Empties the file. It is removed by whoever has given it its place.
    fn delete<'a>(&'a self, _: &'a Settings) -> BoxFuture<'a, Result<(), QueueError>> {
        Box::pin(async {
            self.store().await?.write(|tx| Box::pin(messages::delete_all(tx))).await.map_err(QueueError::from)
        })
    }
}

struct Publisher(Arc<Store>);

impl Publish for Publisher {
    fn publish(&self, message: Message) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            let queue = WorkerName::wanting(&message.event).map_or(UNROUTED, WorkerName::as_str);
            self.0.insert(queue, message).await.map_err(|error| PublishError::Storage(error.to_string()))
        })
    }

    fn readiness(&self) -> Result<String, String> {
        self.0.obstacle().map_or_else(|| Ok("ready".to_owned()), |obstacle| Err(obstacle.to_owned()))
    }

    /// What is on its way is waited for by whoever published it.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

impl SendTo for Publisher {
    fn send(&self, worker: WorkerName, message: Message) -> BoxFuture<'_, Result<(), PublishError>> {
        Box::pin(async move {
            self.0.insert(worker.as_str(), message).await.map_err(|error| PublishError::Storage(error.to_string()))
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Publish::close(self)
    }
}

fn depth(worker: WorkerName, queues: &[InQueue]) -> Depth {
    let names = Queues::of(worker.as_str());
    let queue = |name: &str| queues.iter().find(|queue| queue.name == name).cloned().unwrap_or_default();
    let (own, suspect, dead) = (queue(&names.own), queue(&names.suspect), queue(&names.dead));
    let waiting = own.messages - own.taken;
    Depth {
        worker,
        waiting,
        retrying: queue(&names.retry).messages,
        suspects: suspect.messages - suspect.taken,
        dead: dead.messages,
        consumers: None,
        oldest: own.oldest.filter(|_| waiting > 0),
    }
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> Self {
        Self::Storage(error.to_string())
    }
}
