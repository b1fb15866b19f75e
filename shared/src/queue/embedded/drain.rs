//! Messages out of the file for somebody else than their worker.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::sqlite::SqliteConnection;

use super::consumer::{Queues, give_back_the_gone};
use super::holder::Holder;
use super::messages;
use super::writer::Store;
use crate::event::WorkerName;
use crate::queue::drain::{Drained, TakeOut};
use crate::queue::{QueueError, Removed};

/// What it has taken and not confirmed is back in its queue when its holder is gone.
pub(super) struct FileDrain {
    store: Arc<Store>,
    holder: Holder,
    reader: SqliteConnection,
    queues: Vec<(WorkerName, String)>,
    unconfirmed: Vec<i64>,
}

impl FileDrain {
    pub(super) async fn open(store: Arc<Store>, drained: &Drained) -> Result<Self, QueueError> {
        let queues = match drained {
            Drained::Dead => {
                WorkerName::ALL.into_iter().map(|worker| (worker, Queues::of(worker.as_str()).dead)).collect()
            }
            Drained::Waiting(worker, _) => {
                let Queues { own, retry, suspect, .. } = Queues::of(worker.as_str());
                [own, retry, suspect].into_iter().map(|queue| (*worker, queue)).collect()
            }
        };
        let (holder, reader) = (store.file.new_holder()?, store.file.reader().await?);
        Ok(Self { store, holder, reader, queues, unconfirmed: Vec::new() })
    }

    async fn take(&mut self, worker: WorkerName, queue: &str, most: usize) -> Result<Vec<Removed>, QueueError> {
        // Taking begins with a write, and most times nothing is there.
        if !messages::has_any(&mut self.reader, queue).await.map_err(|error| self.store.file.failed(&error))? {
            return Ok(Vec::new());
        }
        let (queue, holder) = (queue.to_owned(), self.holder.name.clone());
        let taken = self
            .store
            .write(move |tx| Box::pin(async move { messages::take(tx, &queue, &holder, 0, most).await }))
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
}

impl TakeOut for FileDrain {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Removed>, QueueError>> {
        Box::pin(async move {
            let mut removed = Vec::new();
            for (worker, queue) in self.queues.clone() {
                let room = most - removed.len();
                if room > 0 {
                    removed.extend(self.take(worker, &queue, room).await?);
                }
            }
            if removed.is_empty() {
                let looked = give_back_the_gone(&self.store, &mut self.reader, &self.holder.name).await;
                looked.map_err(|error| self.store.file.failed(&error))?;
            }
            Ok(removed)
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
