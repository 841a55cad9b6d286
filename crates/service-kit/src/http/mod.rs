//! The HTTP listener and server of a process: clear errors when the address cannot be bound, checks of host and
//! origin, and a shutdown with a time limit.
//!
//! These rules apply to every request, whatever its method and route:
//!
//! - `Host` has to be an address, `localhost`, the name in [`Settings::host`] or one of [`Settings::allowed_hosts`];
//!   any other value is answered with 421. This refuses a web page whose name was rebound to this machine.
//! - A request that a browser marks as sent by a page of another site (`Sec-Fetch-Site: cross-site`) is answered with
//!   403, unless it opens a page in the address bar or comes from one of [`Settings::allowed_origins`].
//! - A WebSocket handshake, and every method but GET, HEAD, OPTIONS and TRACE, is answered with 403 when its `Origin`
//!   is neither at the request's `Host` or `X-Forwarded-Host` nor one of [`Settings::allowed_origins`].
//! - Every response has `X-Content-Type-Options: nosniff`; the body of an error without a body, or with a plain text,
//!   becomes JSON: `{"detail": "…"}`.
//! - A response that is sent before the body was read reaches the sender: up to 64 MiB of the rest are first read and
//!   discarded.
//! - The head of a request has to be complete within 30 s, which is also the limit for an idle connection; the
//!   connection of a client that reads nothing for 60 s while data is to be sent is closed.

mod answer;
mod guard;
mod settings;
mod unread_body;

use crate::shutdown::Stop;
use crate::{Error, ErrorKind};
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
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;
use unread_body::UnreadBody;

pub use self::settings::Settings;

/// Longest time for open requests to finish after the server stops; endless streams are closed then.
const GRACE: Duration = Duration::from_secs(5);
/// Longest time for the head of a request, and for an idle connection.
const HEAD: Duration = Duration::from_secs(30);
/// Longest time in which a client reads nothing while data is to be sent.
const STALLED: Duration = Duration::from_secs(60);
/// Delay before the next accept after the process ran out of file descriptors.
const EXHAUSTED: Duration = Duration::from_secs(1);

/// A bound port, with the rules for its requests.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    guard: Arc<Guard>,
}

impl Listener {
    /// Returns the address and port of the listener.
    ///
    /// # Errors
    /// When the operating system does not return it.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// Binds the listener.
///
/// # Errors
/// [`ErrorKind::AddressInUse`] when another process uses the port, [`ErrorKind::NotLoopback`] when the address is
/// reachable from other machines and [`Settings::allow_unauthenticated`] is false, [`ErrorKind::InvalidValue`] when an
/// allowed host or origin is not valid, [`ErrorKind::Bind`] otherwise; the text names the remedy.
pub async fn bind(settings: &Settings) -> Result<Listener, Error> {
    let Settings { host, port, .. } = settings;
    let guard = Arc::new(Guard::new(settings)?);
    let failed = |error: io::Error| {
        let (kind, advice) = match error.kind() {
            io::ErrorKind::AddrInUse => {
                (ErrorKind::AddressInUse, "stop the process that uses it, or choose another http.port")
            }
            io::ErrorKind::PermissionDenied => (ErrorKind::Bind, "choose an http.port above 1023"),
            _ => (ErrorKind::Bind, "check http.host, which must be an address of this machine"),
        };
        Error::new(kind, format!("cannot listen on {host}:{port}; {advice}")).because(error)
    };
    // The name is resolved once, so that the checked addresses are the bound ones.
    let addresses: Vec<SocketAddr> = lookup_host((host.as_str(), *port)).await.map_err(failed)?.collect();
    let open = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
    if let Some(open) = open.filter(|_| !settings.allow_unauthenticated) {
        let text = format!(
            "cannot listen on {host}:{port}: {} is not loopback, and this server has no login: every client that \
             can connect may read, write and delete; to allow this, set --allow-unauthenticated or \
             LOGTHON_ALLOW_UNAUTHENTICATED=true",
            open.ip()
        );
        return Err(Error::new(ErrorKind::NotLoopback, text));
    }
    let socket = TcpListener::bind(addresses.as_slice()).await.map_err(failed)?;
    Ok(Listener { socket, guard })
}

/// Serves `router` until `stop` is requested; then accepts no more requests and gives the open ones 5 s to finish.
/// Handlers get the peer's address as [`ConnectInfo<SocketAddr>`]. Upgraded connections, such as WebSockets, are not
/// waited for.
///
/// # Errors
/// None at present: it returns after `stop` is requested.
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
            // The error concerns one peer only; other connections can still be accepted.
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; retrying");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
    drop(socket);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        tracing::info!("closing the connections that are still open after {GRACE:?}");
        cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Serves one connection until its peer disconnects, or until the open request is answered after `stop`.
async fn connection(stream: TcpStream, peer: SocketAddr, router: Router, stop: Stop) {
    // Responses are small and clients wait for them: do not delay them to fill a packet.
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
        tracing::debug!(%error, %peer, "a connection failed");
    }
}

/// Handles every request: checks it, runs the handler, and completes the response.
async fn enter(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let (request, unread) = UnreadBody::of(request);
    let response = match guard.refusal(&request) {
        Some((status, text)) => answer::refusal(status, &text),
        None => next.run(request).await,
    };
    unread.discard(response.status()).await;
    answer::shaped(response).await
}
