//! Messages out of the file for somebody else than their worker.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;

use super::consumer::{Queues, give_back_the_gone};
use super::holder::Holder;
use super::messages;
use super::writer::Store;
use crate::event::WorkerName;
use crate::queue::drain::{Drained, MOST_BYTES, TakeOut};
use crate::queue::{QueueError, Removed};

/// What it has taken and not confirmed is free again when its holder is gone.
pub(super) struct FileDrain {
    store: Arc<Store>,
    holder: Holder,
    reader: SqliteConnection,
    queues: Vec<Source>,
    unconfirmed: Vec<i64>,
}

/// A queue that is emptied.
#[derive(Debug, Clone)]
struct Source {
    worker: WorkerName,
    queue: String,
    /// The last of its messages that is taken out.
    last: i64,
}

impl FileDrain {
    pub(super) async fn open(store: Arc<Store>, drained: &Drained) -> Result<Self, QueueError> {
        let (holder, mut reader) = (store.file.new_drain()?, store.file.reader().await?);
        let failed = |error| store.file.failed(&error);
        // What a drain had that was killed is there to be taken.
        give_back_the_gone(&store, &mut reader, &holder.name).await.map_err(failed)?;
        let mut queues = Vec::new();
        match drained {
            Drained::Dead => {
                let dead =
                    |worker: WorkerName| Source { worker, queue: Queues::of(worker.as_str()).dead, last: i64::MAX };
                queues.extend(WorkerName::ALL.map(dead));
            }
            Drained::Waiting(worker, _) => {
                let Queues { own, retry, suspect, .. } = Queues::of(worker.as_str());
                for queue in [own, retry, suspect] {
                    let last = messages::last(&mut reader, &queue).await.map_err(failed)?.unwrap_or_default();
                    queues.push(Source { worker: *worker, queue, last });
                }
            }
        }
        Ok(Self { store, holder, reader, queues, unconfirmed: Vec::new() })
    }

    async fn take(&mut self, source: Source, most: usize) -> Result<Vec<Removed>, QueueError> {
        let Source { worker, queue, last } = source;
        // Taking begins with a write, and most times nothing is there.
        let most = messages::fitting(&mut self.reader, &queue, last, most, MOST_BYTES).await;
        let most = most.map_err(|error| self.store.file.failed(&error))?;
        if most == 0 {
            return Ok(Vec::new());
        }
        let holder = self.holder.name.clone();
        let taken = self
            .store
            .write(move |tx| Box::pin(async move { messages::take(tx, &queue, &holder, 0..=last, most).await }))
            .await?;
        self.unconfirmed.extend(taken.iter().map(|stored| stored.seq));
        let removed = |stored: messages::Stored| Removed {
            worker,
            headers: stored.message.headers(stored.death.as_ref()),
            message: stored.message,
            death: stored.death,
        };
        Ok(taken.into_iter().map(removed).collect())
    }

    /// From the first queue that has any.
    async fn some(&mut self, most: usize) -> Result<Vec<Removed>, QueueError> {
        for source in self.queues.clone() {
            let removed = self.take(source, most).await?;
            if !removed.is_empty() {
                return Ok(removed);
            }
        }
        Ok(Vec::new())
    }
}

impl TakeOut for FileDrain {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Removed>, QueueError>> {
        Box::pin(async move {
            let removed = self.some(most).await?;
            if !removed.is_empty() {
                return Ok(removed);
            }
            let given = give_back_the_gone(&self.store, &mut self.reader, &self.holder.name).await;
            given.map_err(|error| self.store.file.failed(&error))?;
            self.some(most).await
        })
    }

    fn confirm(&mut self) -> BoxFuture<'_, Result<(), QueueError>> {
        let seqs = std::mem::take(&mut self.unconfirmed);
        Box::pin(async move {
            let deleted = self.store.write(|tx| Box::pin(messages::delete(tx, seqs)));
            Ok(deleted.await?)
        })
    }
}
