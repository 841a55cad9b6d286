//! The listener and server of a process: clear when the address cannot be had, bounded when it stops.

use crate::shutdown::Stop;
use crate::{Error, Kind};
use axum::Router;
use axum::serve::ListenerExt;
use serde::Deserialize;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;

/// How long open requests may take to finish once the server stops; streams without an end are cut then.
const GRACE: Duration = Duration::from_secs(5);

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Name or address of the interface; default `127.0.0.1`, so that nothing is reachable from outside unasked.
    pub host: String,
    /// TCP port; default 5000, and 0 takes any free one.
    pub port: u16,
}

impl Default for Settings {
    fn default() -> Self {
        Self { host: "127.0.0.1".into(), port: 5000 }
    }
}

/// Opens the listener.
///
/// # Errors
/// [`Kind::AddressInUse`] when another process has the port, [`Kind::Bind`] otherwise; the text says what to do.
pub async fn bind(settings: &Settings) -> Result<TcpListener, Error> {
    let Settings { host, port } = settings;
    TcpListener::bind((host.as_str(), *port)).await.map_err(|error| {
        let (kind, advice) = match error.kind() {
            ErrorKind::AddrInUse => {
                (Kind::AddressInUse, "stop the process that has it, or choose another http.port")
            }
            ErrorKind::PermissionDenied => (Kind::Bind, "choose an http.port above 1023"),
            _ => (Kind::Bind, "check http.host, which must be an address of this machine"),
        };
        Error::new(kind, format!("cannot listen on {host}:{port}: {error}; {advice}")).because(error)
    })
}

/// Serves `router` until `stop` is requested; then takes no new requests and gives the open ones 5 s to finish.
///
/// # Errors
/// When the server fails by itself.
pub async fn serve(listener: TcpListener, router: Router, stop: Stop) -> Result<(), Error> {
    // Answers are small and waited for: never held back to fill a packet.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    let requested = stop.clone();
    let server =
        axum::serve(listener, service).with_graceful_shutdown(async move { requested.requested().await });
    let cut = async {
        stop.requested().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| Error::new(Kind::Serve, "the http server stopped").because(error)),
        () = cut => {
            tracing::info!("connections still open after {GRACE:?} are cut");
            Ok(())
        }
    }
}
