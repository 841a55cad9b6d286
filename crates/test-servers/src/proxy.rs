//! A network that fails when it is told to: a TCP proxy in front of a server.

use crate::{Error, Result};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Both.
    Both,
}

/// What the network does to one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Line {
    swallow: bool,
    hold: bool,
    latency: Duration,
    /// Bytes per second; zero is as fast as it goes.
    rate: u64,
}

/// The state of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Network {
    up: Line,
    down: Line,
    refuse: bool,
    /// Connections of an older age than this are cut.
    age: u64,
}

/// A TCP proxy on a loopback port in front of one server. It passes everything on until it is told otherwise.
/// Dropping it cuts its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    network: watch::Sender<Network>,
    open: Arc<AtomicUsize>,
    swallowed: Arc<AtomicU64>,
    accept: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port, for the server on this loopback port.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(server: u16) -> Result<Self> {
        let failed = |e| Error::system("the proxy cannot listen", e);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        let (network, seen) = watch::channel(Network::default());
        let (open, swallowed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server));
        let accept = tokio::spawn(accept(listener, server, seen, open.clone(), swallowed.clone()));
        Ok(Self { port, network, open, swallowed, accept })
    }

    /// The port that clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// This URL of the server, through the proxy: the same with the proxy's port.
    ///
    /// # Panics
    /// When the URL does not name `127.0.0.1` with a port.
    pub fn url(&self, server: &str) -> String {
        let (head, tail) = server.split_once("127.0.0.1:").expect("the URL names 127.0.0.1 and a port");
        let rest = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{head}127.0.0.1:{}{rest}", self.port)
    }

    /// How many connections are open through it now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many bytes it has swallowed.
    pub fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }

    /// Resets all connections at once; new ones are let through.
    pub fn cut(&self) {
        self.network.send_modify(|network| network.age += 1);
    }

    /// Resets all connections and each new one, until [`heal`](Self::heal).
    pub fn refuse(&self) {
        self.network.send_modify(|network| {
            network.age += 1;
            network.refuse = true;
        });
    }

    /// Half-open: bytes of this direction vanish while both ends believe that the connection lives, until
    /// [`heal`](Self::heal), which cuts the connections that lost bytes.
    pub fn swallow(&self, direction: Direction) {
        self.change(direction, |line| line.swallow = true);
    }

    /// A network in pieces: bytes of this direction wait, as the system would send them again, until
    /// [`heal`](Self::heal) lets them through.
    pub fn hold(&self, direction: Direction) {
        self.change(direction, |line| line.hold = true);
    }

    /// A slow network: each piece arrives later by `latency`, and no more than so many bytes pass in a second (0: as
    /// many as will), until [`heal`](Self::heal).
    pub fn slow(&self, direction: Direction, latency: Duration, bytes_per_second: u64) {
        self.change(direction, |line| {
            line.latency = latency;
            line.rate = bytes_per_second;
        });
    }

    /// A good network again, for open and for new connections.
    pub fn heal(&self) {
        self.network.send_modify(|network| *network = Network { age: network.age, ..Network::default() });
    }

    fn change(&self, direction: Direction, change: impl Fn(&mut Line)) {
        self.network.send_modify(|network| {
            if direction != Direction::Down {
                change(&mut network.up);
            }
            if direction != Direction::Up {
                change(&mut network.down);
            }
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept.abort(); // the connections see the network vanish and end
    }
}

async fn accept(
    listener: TcpListener,
    server: SocketAddr,
    network: watch::Receiver<Network>,
    open: Arc<AtomicUsize>,
    swallowed: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            sleep(Duration::from_millis(10)).await; // out of file descriptors, most likely
            continue;
        };
        let (network, open, swallowed) = (network.clone(), open.clone(), swallowed.clone());
        tokio::spawn(async move {
            open.fetch_add(1, Ordering::Relaxed);
            let _ = connection(client, server, network, &swallowed).await;
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection until either end closes it or the network is cut.
async fn connection(
    client: TcpStream,
    server: SocketAddr,
    mut network: watch::Receiver<Network>,
    swallowed: &AtomicU64,
) -> io::Result<()> {
    // An end that closes with this set is reset, as when the other end's machine is gone.
    client.set_zero_linger()?;
    let born = *network.borrow_and_update();
    if born.refuse {
        return Ok(());
    }
    let server = TcpStream::connect(server).await?;
    server.set_zero_linger()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_reads, client_writes) = client.into_split();
    let (server_reads, server_writes) = server.into_split();
    let up = pass(client_reads, server_writes, network.clone(), |network| network.up, swallowed);
    let down = pass(server_reads, client_writes, network.clone(), |network| network.down, swallowed);
    tokio::select! {
        result = up => result,
        result = down => result,
        _ = network.wait_for(|network| network.age != born.age) => Ok(()),
    }
}

/// Passes bytes on in one direction, as the network allows.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    line: fn(&Network) -> Line,
    swallowed: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut lost = false;
    // When the next piece may pass, at a limited rate.
    let mut next = Instant::now();
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            // A healed network shows that bytes were lost: the connection cannot go on.
            _ = network.wait_for(|now| !line(now).swallow), if lost => return Ok(()),
        };
        if read == 0 {
            return Ok(());
        }
        let now = match network.wait_for(|now| !line(now).hold).await {
            Ok(now) => line(&now),
            Err(_) => return Ok(()),
        };
        if now.swallow {
            swallowed.fetch_add(read as u64, Ordering::Relaxed);
            lost = true;
            continue;
        }
        if lost {
            return Ok(());
        }
        sleep(now.latency).await;
        if now.rate > 0 {
            next = next.max(Instant::now());
            sleep_until(next.into()).await;
            next += Duration::from_secs_f64(read as f64 / now.rate as f64);
        }
        to.write_all(&buffer[..read]).await?;
    }
}
