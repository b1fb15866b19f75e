//! Who may be connected when not everybody can.
//!
//! A *stranger* is a connection over which no good signature has come yet: a server's new one too, for some milliseconds. As
//! long as there are strangers, nobody waits for a place: the oldest of them goes. So a flood of them cannot keep a server
//! out, however many addresses it comes from, and whoever has signed once is never closed for somebody else.
//!
//! - The strangers of one address are few at most (`ingress.max_unsigned_per_address`, of IPv6 by /64); its next one closes its
//!   oldest. Trusted proxies are exempt.
//! - A tenth of all places stays free of strangers, so that a new connection is taken at once and has its time to sign.
//! - Strangers from an address from which a good signature has come before, or of a trusted proxy, are the last to go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use rollcall_shared::telemetry::client::{is_in, network};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::metrics::{self, OpenConnection};

/// From how many addresses servers are remembered to have signed. Only who can sign gets one in.
const SERVERS: usize = 1_000;

/// The limits.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How many connections there may be at once.
    pub connections: usize,
    /// How many of one address may be strangers.
    pub strangers_per_address: usize,
    /// The proxies, which pass on connections of everybody.
    pub trusted_proxies: Vec<IpNet>,
}

/// All connections that are open.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    /// How many places strangers leave free, while servers leave as many.
    reserve: usize,
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// The number of the next connection.
    next: u64,
    /// How many have shown a good signature.
    signed: usize,
    /// The strangers, the oldest first.
    unknown: BTreeMap<u64, Stranger>,
    /// Those from where a server is, or may be.
    expected: BTreeMap<u64, Stranger>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    /// Where servers have signed from, and when a connection did so last.
    servers: HashMap<IpAddr, Instant>,
}

#[derive(Debug)]
struct Stranger {
    address: IpAddr,
    closed: CancellationToken,
}

/// One open connection: its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    number: u64,
    peer: SocketAddr,
    address: IpAddr,
    is_proxy: bool,
    has_signed: AtomicBool,
    keep_alive: bool,
    closed: CancellationToken,
    _place: OwnedSemaphorePermit,
    _counted: OpenConnection,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            reserve: (limits.connections / 10).max(1),
            places: Arc::new(Semaphore::new(limits.connections)),
            limits,
            open: Mutex::default(),
        })
    }

    /// A place for a connection from `peer`. Waits only where every other one has signed.
    pub(crate) async fn admit(self: &Arc<Self>, peer: SocketAddr) -> Place {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.locked().close_oldest(None);
                Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed")
            }
        };
        self.enter(peer, place)
    }

    fn enter(self: &Arc<Self>, peer: SocketAddr, place: OwnedSemaphorePermit) -> Place {
        let (address, is_proxy) = (network(peer.ip()), is_in(&self.limits.trusted_proxies, peer.ip()));
        let closed = CancellationToken::new();
        let mut open = self.locked();
        let is_servers = open.servers.contains_key(&address);
        let number = open.enter(Stranger { address, closed: closed.clone() }, is_servers || is_proxy);
        let limit = self.limits.strangers_per_address;
        // A server that opens a connection for each of its rooms at once is not to close its own.
        let limit = if is_servers { limit.max(self.reserve) } else { limit };
        if !is_proxy {
            open.close_beyond(limit, address);
        }
        // What servers leave, strangers may have half of at least.
        let to_stay_free = self.reserve.min((self.limits.connections - open.signed) / 2);
        if self.places.available_permits() < to_stay_free {
            open.close_oldest(Some(number));
        }
        let keep_alive = open.signed + self.reserve < self.limits.connections;
        drop(open);
        Place {
            admission: Arc::clone(self),
            number,
            peer,
            address,
            is_proxy,
            has_signed: AtomicBool::new(false),
            keep_alive,
            closed,
            _place: place,
            _counted: OpenConnection::new(),
        }
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn enter(&mut self, stranger: Stranger, is_expected: bool) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_address.entry(stranger.address).or_default().insert(number);
        let strangers = if is_expected { &mut self.expected } else { &mut self.unknown };
        strangers.insert(number, stranger);
        number
    }

    /// Closes the oldest stranger but this one.
    fn close_oldest(&mut self, but: Option<u64>) {
        let mut oldest_first = self.unknown.keys().chain(self.expected.keys()).copied();
        if let Some(oldest) = oldest_first.find(|number| Some(*number) != but) {
            self.close(oldest, "full");
        }
    }

    /// Closes the oldest strangers of an address that has more than so many.
    fn close_beyond(&mut self, limit: usize, address: IpAddr) {
        while let Some(of_address) = self.by_address.get(&address)
            && of_address.len() > limit
            && let Some(oldest) = of_address.first().copied()
        {
            self.close(oldest, "address");
        }
    }

    fn close(&mut self, number: u64, why: &'static str) {
        if let Some(stranger) = self.remove(number) {
            debug!(address = %stranger.address, why, "A connection that has not signed was closed for another.");
            metrics::closed_for_another(why);
            stranger.closed.cancel();
        }
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.unknown.remove(&number).or_else(|| self.expected.remove(&number))?;
        if let Some(of_address) = self.by_address.get_mut(&stranger.address) {
            of_address.remove(&number);
            if of_address.is_empty() {
                self.by_address.remove(&stranger.address);
            }
        }
        Some(stranger)
    }

    /// A server has signed from there: what else comes from there is expected.
    fn learn(&mut self, address: IpAddr) {
        if self.servers.insert(address, Instant::now()).is_some() {
            return;
        }
        for number in self.by_address.get(&address).into_iter().flatten() {
            self.expected.extend(self.unknown.remove_entry(number));
        }
        if self.servers.len() > SERVERS
            && let Some(oldest) = self.servers.iter().min_by_key(|(_, last)| **last).map(|(address, _)| *address)
        {
            self.servers.remove(&oldest);
        }
    }
}

impl Place {
    /// The other end of the connection.
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether it may have more than one request.
    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Cancelled when the place is wanted for somebody else.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// A good signature has come.
    pub(crate) fn signed(&self) {
        if self.has_signed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut open = self.admission.locked();
        open.remove(self.number);
        open.signed += 1;
        if !self.is_proxy {
            open.learn(self.address);
        }
    }

    /// Whether a server has signed over this connection, or another from its address.
    pub(crate) fn is_a_servers(&self) -> bool {
        self.has_signed.load(Ordering::Relaxed) || self.admission.locked().servers.contains_key(&self.address)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.admission.locked();
        if *self.has_signed.get_mut() {
            open.signed -= 1;
        } else {
            open.remove(self.number);
        }
    }
}
