//! Somebody from outside who wants to be in the way: holds as many connections as it is told, and opens one anew, a while
//! later, when it is closed. A process of its own, since each has so many open files at most.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use rollcall_tests::raise_file_limit;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;

/// How long until a connection that was closed is opened anew: not all at once.
const PAUSE: RangeInclusive<f64> = 5.0..=15.0;
/// What the kernel keeps for one connection at this end, where both ends are on one machine and its memory is looked at.
const BUFFER: u32 = 4096;
/// How many connections are being opened at once.
const OPENING: usize = 64;

#[derive(Parser)]
struct Arguments {
    attack: Attack,
    /// Where the ingress takes webhooks.
    target: SocketAddr,
    /// How many connections.
    #[arg(long)]
    connections: u32,
    /// The first of the addresses that they come from.
    #[arg(long)]
    from: Ipv4Addr,
    /// How many addresses.
    #[arg(long, default_value_t = 1)]
    addresses: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attack {
    /// Two of three ask for something once, and then say nothing: that may last a minute. The third never says anything: it
    /// takes the places where nobody is kept after an answer.
    Idle,
    /// Asks and asks, and reads no answer.
    Deaf,
    /// Sends a MiB without a signature, but for the last byte.
    UnsignedBodies,
    /// The same to a path where nothing is taken.
    LostBodies,
    /// The same with a signature that is none.
    ForgedBodies,
}

/// One connection, over and over.
struct Attacker {
    attack: Attack,
    from: Ipv4Addr,
    target: SocketAddr,
    request: Arc<[u8]>,
    opening: Arc<Semaphore>,
    /// One permit for each that was connected once.
    was_there: Arc<Semaphore>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    raise_file_limit();
    let Arguments { attack, target, connections, from, addresses } = Arguments::parse();
    let (opening, was_there) = (Arc::new(Semaphore::new(OPENING)), Arc::new(Semaphore::new(0)));
    let request: Arc<[u8]> = attack.request().into();
    for number in 0..connections {
        let attacker = Attacker {
            attack,
            from: Ipv4Addr::from_bits(from.to_bits() + number % addresses),
            target,
            request: if attack == Attack::Idle && number % 3 == 0 { Arc::default() } else { Arc::clone(&request) },
            opening: Arc::clone(&opening),
            was_there: Arc::clone(&was_there),
        };
        tokio::spawn(attacker.run());
    }
    let _all = was_there.acquire_many(connections).await?;
    writeln!(std::io::stderr(), "everybody was there")?;
    std::future::pending().await
}

impl Attacker {
    async fn run(self) {
        let mut was_there = false;
        loop {
            if let Ok(stream) = self.open().await {
                if !std::mem::replace(&mut was_there, true) {
                    self.was_there.add_permits(1);
                }
                // However it ends, it begins again.
                let _ = self.attack.on(stream, &self.request).await;
            }
            sleep(Duration::from_secs_f64(rand::random_range(PAUSE))).await;
        }
    }

    async fn open(&self) -> anyhow::Result<TcpStream> {
        let _opening = self.opening.acquire().await?;
        let socket = TcpSocket::new_v4()?;
        socket.set_send_buffer_size(BUFFER)?;
        socket.set_recv_buffer_size(BUFFER)?;
        socket.bind((self.from, 0).into())?;
        Ok(socket.connect(self.target).await?)
    }
}

impl Attack {
    fn request(self) -> Vec<u8> {
        let (path, header, length) = match self {
            Self::Idle => ("/", "", 0),
            Self::Deaf => ("/webhooks/plugnmeet", "", 2),
            Self::UnsignedBodies => ("/webhooks/plugnmeet", "", 1 << 20),
            Self::LostBodies => ("/", "", 1 << 20),
            Self::ForgedBodies => ("/webhooks/plugnmeet", "Hash-Token: x\r\n", 1 << 20),
        };
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{header}Content-Length: {length}\r\n\r\n");
        let mut request = head.into_bytes();
        request.resize(request.len() + length, b'x');
        request
    }

    /// Until it is closed.
    async fn on(self, mut stream: TcpStream, request: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Idle => stream.write_all(request).await?,
            Self::Deaf => loop {
                stream.write_all(request).await?;
            },
            Self::UnsignedBodies | Self::LostBodies | Self::ForgedBodies => {
                stream.write_all(&request[..request.len() - 1]).await?;
            }
        }
        let mut answer = [0; 1024];
        while stream.read(&mut answer).await? > 0 {}
        Ok(())
    }
}
