//! A TCP proxy in front of a server that simulates network failures on request.

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

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
    /// Both.
    Both,
}

/// The condition of one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Line {
    swallow: bool,
    hold: bool,
    latency: Duration,
    /// Bytes per second; zero means no limit.
    rate: u64,
}

/// The state of the network.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Network {
    up: Line,
    down: Line,
    refuse: bool,
    /// Connections that were opened at a lower age are cut.
    age: u64,
}

/// A TCP proxy on a loopback port in front of one server. It forwards everything until a method changes that.
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
    /// Starts a proxy on a free loopback port, for the server on the loopback port `server`.
    ///
    /// # Errors
    /// When no port is available.
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

    /// Returns the port to which clients connect.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns this URL of the server with the proxy's port instead.
    ///
    /// # Panics
    /// When the URL does not name `127.0.0.1` with a port.
    pub fn url(&self, server: &str) -> String {
        let (head, tail) = server.split_once("127.0.0.1:").expect("the URL names 127.0.0.1 and a port");
        let rest = tail.trim_start_matches(|c: char| c.is_ascii_digit());
        format!("{head}127.0.0.1:{}{rest}", self.port)
    }

    /// Returns the number of connections that are open through the proxy now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes that were discarded.
    pub fn swallowed(&self) -> u64 {
        self.swallowed.load(Ordering::Relaxed)
    }

    /// Resets all connections at once; new connections work.
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

    /// Makes connections half-open: bytes of this direction are discarded while neither end detects it, until
    /// [`heal`](Self::heal), which cuts the connections that lost bytes.
    pub fn swallow(&self, direction: Direction) {
        self.change(direction, |line| line.swallow = true);
    }

    /// Interrupts the network: bytes of this direction are held, as if the system had to send them again,
    /// until [`heal`](Self::heal) delivers them.
    pub fn hold(&self, direction: Direction) {
        self.change(direction, |line| line.hold = true);
    }

    /// Slows the network: each piece arrives later by `latency`, at no more than `bytes_per_second` (0: no
    /// limit), until [`heal`](Self::heal).
    pub fn slow(&self, direction: Direction, latency: Duration, bytes_per_second: u64) {
        self.change(direction, |line| {
            line.latency = latency;
            line.rate = bytes_per_second;
        });
    }

    /// Restores the network, for open and for new connections.
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
        self.accept.abort(); // the connections end when the network's sender is dropped
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

/// Serves one connection until either end closes it or the network is cut.
async fn connection(
    client: TcpStream,
    server: SocketAddr,
    mut network: watch::Receiver<Network>,
    swallowed: &AtomicU64,
) -> io::Result<()> {
    // Closing a socket with this option resets the connection, as when the other end's machine has failed.
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

/// Forwards bytes in one direction, under the network's conditions.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    line: fn(&Network) -> Line,
    swallowed: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut lost = false;
    // The earliest time for the next piece, at a limited rate.
    let mut next = Instant::now();
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            // Bytes were lost before the network was healed: the connection cannot continue.
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
