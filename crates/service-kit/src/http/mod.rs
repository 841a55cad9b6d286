//! The listener and server of a process: clear when the address cannot be had, careful about who asks, bounded when
//! it stops.
//!
//! Every request passes these rules, whatever its method and route:
//!
//! - `Host` has to be an address, `localhost`, the name in [`Settings::host`] or one of [`Settings::allowed_hosts`];
//!   anything else answers 421. A web page whose name was rebound to this machine is refused by that.
//! - What a browser marks as sent by a page of another site (`Sec-Fetch-Site: cross-site`) answers 403, unless it
//!   opens a page in the address bar or comes from one of [`Settings::allowed_origins`].
//! - A WebSocket handshake, and every method but GET, HEAD, OPTIONS and TRACE, answers 403 when its `Origin` is
//!   neither at the request's `Host` or `X-Forwarded-Host` nor one of [`Settings::allowed_origins`].
//! - Every answer carries `X-Content-Type-Options: nosniff`; an error without a body of its own, or with a plain
//!   text, is JSON: `{"detail": "…"}`.
//! - An answer that comes before the body was read reaches the sender: up to 64 MiB of the rest are read and
//!   discarded first.
//! - The head of a request has to be complete within 30 s, which is also how long an idle connection is kept; a
//!   reader that takes nothing for 60 s while there is something to send is cut.

mod answer;
mod guard;
mod rest;

use crate::shutdown::Stop;
use crate::{Error, Kind};
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use guard::Guard;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rest::Rest;
use serde::Deserialize;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

/// How long open requests may take to finish once the server stops; streams without an end are cut then.
const GRACE: Duration = Duration::from_secs(5);
/// How long the head of a request may take, and a connection be idle.
const HEAD: Duration = Duration::from_secs(30);
/// How long a reader may take nothing while there is something to send.
const STALLED: Duration = Duration::from_secs(60);
/// How long the listener waits when the process has no file handle left for a connection.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// Where to listen, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Name or address of the interface; default `127.0.0.1`, so that nothing is reachable from outside unasked.
    pub host: String,
    /// TCP port; default 5000, and 0 takes any free one.
    pub port: u16,
    /// Whether to listen on more than loopback although this server asks nobody for a password or token: whoever
    /// reaches it reads and changes everything. Default false: [`bind`] refuses then.
    pub allow_unauthenticated: bool,
    /// Names by which clients may address this server in `Host`, beside `localhost`, addresses, and [`host`](Self::host);
    /// a port is ignored, `*` allows every name. Default: none.
    pub allowed_hosts: Vec<String>,
    /// Origins, such as `https://ops.example:8443`, whose pages may send changes and open WebSockets, beside the
    /// server's own. Default: none.
    pub allowed_origins: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".into(),
            port: 5000,
            allow_unauthenticated: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
        }
    }
}

/// An open port, with the rules for who may use it.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    guard: Arc<Guard>,
}

impl Listener {
    /// The address and port that it listens on.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Opens the listener.
///
/// # Errors
/// [`Kind::AddressInUse`] when another process has the port, [`Kind::NotLoopback`] when the address is reachable from
/// elsewhere and [`Settings::allow_unauthenticated`] does not say so, [`Kind::InvalidValue`] when an allowed host or
/// origin is none, [`Kind::Bind`] otherwise; the text says what to do.
pub async fn bind(settings: &Settings) -> Result<Listener, Error> {
    let Settings { host, port, .. } = settings;
    let guard = Arc::new(Guard::new(settings)?);
    let failed = |error: io::Error| {
        let (kind, advice) = match error.kind() {
            ErrorKind::AddrInUse => {
                (Kind::AddressInUse, "stop the process that has it, or choose another http.port")
            }
            ErrorKind::PermissionDenied => (Kind::Bind, "choose an http.port above 1023"),
            _ => (Kind::Bind, "check http.host, which must be an address of this machine"),
        };
        Error::new(kind, format!("cannot listen on {host}:{port}: {error}; {advice}")).because(error)
    };
    // The same addresses are judged and bound: a name is looked up once.
    let addresses: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await.map_err(failed)?.collect();
    let open = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(open) = open.filter(|_| !settings.allow_unauthenticated) {
        let text = format!(
            "cannot listen on {host}:{port}: {} is not loopback, and this server has no login: whoever reaches it \
             may read, write and delete; if that is meant, say --allow-unauthenticated or \
             LOGTHON_ALLOW_UNAUTHENTICATED=true",
            open.ip()
        );
        return Err(Error::new(Kind::NotLoopback, text));
    }
    let socket = TcpListener::bind(addresses.as_slice()).await.map_err(failed)?;
    Ok(Listener { socket, guard })
}

/// Serves `router` until `stop` is requested; then takes no new requests and gives the open ones 5 s to finish.
/// Handlers find the peer as [`ConnectInfo<SocketAddr>`]. What is upgraded, as WebSockets are, is not waited for.
///
/// # Errors
/// None now: it ends when it is asked to.
pub async fn serve(listener: Listener, router: Router, stop: Stop) -> Result<(), Error> {
    let Listener { socket, guard } = listener;
    let router = router.layer(from_fn_with_state(guard, enter));
    let (connections, cut) = (TaskTracker::new(), CancellationToken::new());
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stop.requested() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connection(stream, peer, router.clone(), stop.clone());
                let cut = cut.clone();
                connections.spawn(async move { cut.run_until_cancelled(connection).await });
            }
            // One peer's trouble; the others are still to be had.
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted now");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    drop(socket);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::info!("connections still open after {GRACE:?} are cut");
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection until its peer leaves, or until the open request is answered after `stop`.
async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: Stop) {
    // Answers are small and waited for: never held back to fill a packet.
    drop(stream.set_nodelay(true));
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALLED));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().call(request)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let connection = server.serve_connection(TokioIo::new(Box::pin(stream)), service).with_upgrades();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, %peer, "a connection broke off");
    }
}

/// The way of every request: judged, answered, and the answer put into shape.
async fn enter(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let (request, rest) = Rest::of(request);
    let response = match guard.refusal(&request) {
        Some((status, text)) => answer::refusal(status, &text),
        None => next.run(request).await,
    };
    rest.discard(response.status()).await;
    answer::shaped(response).await
}
