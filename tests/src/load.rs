//! A load of webhooks that goes on while things break, and what became of those that were accepted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::StatusCode;
use rollcall_shared::store::entity::{live_session_interval, live_session_user};
use sea_orm::{ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::eventually;
use crate::installation::Installation;
use crate::joins::applied;
use crate::webhooks::{Scheme, Sender};

const CLIENTS: usize = 8;
/// Longer than an ingress may take to say that the broker does not confirm.
const ANSWER: Duration = Duration::from_secs(10);

/// Joins of ever new people, posted until it is stopped.
pub struct Load {
    ingress: watch::Sender<SocketAddr>,
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
    clients: JoinSet<BTreeSet<String>>,
}

impl Load {
    /// Begins to post to this ingress.
    pub fn start(installation: &Installation, ingress: SocketAddr) -> Self {
        let (ingress, _) = watch::channel(ingress);
        let stop = CancellationToken::new();
        let accepted = Arc::new(AtomicUsize::new(0));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let keys = Sender::new(installation, "main", *ingress.borrow());
            clients.spawn(post(client, keys, ingress.subscribe(), stop.clone(), accepted.clone()));
        }
        Self { ingress, stop, accepted, clients }
    }

    /// Goes on with another ingress.
    pub fn go_to(&self, ingress: SocketAddr) {
        self.ingress.send_replace(ingress);
    }

    /// Waits until so many more were accepted: what was broken has been got over.
    pub async fn goes_on(&self, count: usize, limit: Duration) {
        let target = self.accepted.load(Ordering::Relaxed) + count;
        eventually(limit, || async {
            let accepted = self.accepted.load(Ordering::Relaxed);
            if accepted >= target { Ok(()) } else { Err(format!("{accepted} of {target} were accepted")) }
        })
        .await;
    }

    /// Stops posting; which connections' joins were answered 200.
    pub async fn stop(self) -> BTreeSet<String> {
        self.stop.cancel();
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

async fn post(
    client: usize,
    mut sender: Sender,
    mut ingress: watch::Receiver<SocketAddr>,
    stop: CancellationToken,
    count: Arc<AtomicUsize>,
) -> BTreeSet<String> {
    let mut accepted = BTreeSet::new();
    let mut number = 0;
    while !stop.is_cancelled() {
        sender = sender.to(*ingress.borrow_and_update());
        number += 1;
        let sid = format!("PA_{client}_{number}");
        let body = json!({"event": "participant_joined", "id": format!("EV_{sid}"), "created_at": "1790000000",
            "room": {"sid": format!("sid-{client}"), "room_id": format!("room-{client}")},
            "participant": {"sid": sid, "identity": sid, "joined_at": "1790000000"}});
        match timeout(ANSWER, sender.try_post(&body.to_string(), Scheme::Token)).await {
            Ok(Ok((StatusCode::OK, _))) => {
                accepted.insert(sid);
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Ok((StatusCode::SERVICE_UNAVAILABLE, _)) | Err(_)) => sleep(Duration::from_millis(20)).await,
            Ok(Ok((status, answer))) => panic!("answered {status}: {answer}"),
            Err(_) => panic!("not answered within {ANSWER:?}"),
        }
    }
    accepted
}

/// Waits until everybody whose join was accepted is in the tables, once.
pub async fn all_applied(installation: &Installation, accepted: &BTreeSet<String>, limit: Duration) {
    // First the cheap question, for as long as that is enough.
    applied(installation, accepted.len() as u64, limit).await;
    eventually(limit, || async {
        let rows =
            live_session_interval::Entity::find().all(&installation.db).await.map_err(|error| error.to_string())?;
        let applied: BTreeSet<_> = rows.into_iter().map(|row| row.participant_sid).collect();
        let missing: Vec<_> = accepted.difference(&applied).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("{} of {} accepted are missing, such as {}", missing.len(), accepted.len(), missing[0]))
        }
    })
    .await;
    let twice = live_session_user::Entity::find().filter(live_session_user::Column::JoinCount.ne(1));
    assert_eq!(twice.count(&installation.db).await.unwrap(), 0, "somebody joined twice");
}
