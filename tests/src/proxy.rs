//! A way to a server that can fall silent, as a firewall does that has forgotten its connections: they stay open, and nothing
//! comes through any more.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A proxy before one server, until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    silent: watch::Sender<bool>,
    // The connections are their own, and end with it.
    _connections: JoinSet<()>,
}

impl Proxy {
    /// Listens, and forwards every connection to `server`.
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (silent, is_silent) = watch::channel(false);
        let mut proxy = JoinSet::new();
        proxy.spawn(accept(listener, server, is_silent));
        Self { address, silent, _connections: proxy }
    }

    /// From now on nothing comes through, on old connections or new ones; all of them stay open.
    pub fn fall_silent(&self) {
        self.silent.send_replace(true);
    }

    /// New connections are forwarded again. Those that have seen the silence stay silent.
    pub fn forward_again(&self) {
        self.silent.send_replace(false);
    }
}

async fn accept(listener: TcpListener, server: SocketAddr, silent: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        connections.spawn(forward(client, server, silent.clone()));
    }
}

async fn forward(mut client: TcpStream, server: SocketAddr, mut silent: watch::Receiver<bool>) {
    // Gone is gone, and both sides see it.
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let falls_silent = async { drop(silent.wait_for(|silent| *silent).await) };
    let forwarding = copy_bidirectional(&mut client, &mut server);
    tokio::select! {
        biased;
        () = falls_silent => std::future::pending().await,
        _ = forwarding => {}
    }
}
