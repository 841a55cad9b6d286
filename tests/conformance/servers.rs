//! Shared code of the brokers' fixtures: a separate server for one case behind a failing network, and
//! blocking waits.

use std::ops::Deref;
use std::sync::LazyLock;
use std::time::Duration;

use event_client::{Error, ErrorKind, Result};
use event_conformance::{Server, Storage};
use futures_util::future::BoxFuture;
use test_servers::{Direction, Process, Proxy};
use tokio::runtime::Runtime;

/// Waits for `future` in a function that cannot await: a fixture's methods. The future runs on a runtime that
/// outlives every case, as proxies need.
pub(crate) fn wait<T: Send>(future: impl Future<Output = T> + Send) -> T {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime for servers"));
    // A new thread, because the caller's thread may already drive a runtime.
    std::thread::scope(|scope| {
        scope.spawn(|| RUNTIME.block_on(future)).join().expect("waiting for a server does not panic")
    })
}

/// Creates a storage on a separate server: `start` starts it, `url` returns its URL.
///
/// # Errors
/// When the server does not start; the text contains the reason.
pub(crate) fn own_server<S>(
    start: impl Future<Output = test_servers::Result<S>> + Send,
    url: impl FnOnce(&S) -> String,
) -> Result<Storage>
where
    S: Deref<Target = Process> + Send + Sync + 'static,
{
    let (server, proxy) = wait(async {
        let server = start.await?;
        let proxy = Proxy::start(server.port()).await?;
        Ok((server, proxy))
    })
    .map_err(failed)?;
    Ok(Storage::with_server(proxy.url(&url(&server)), Own { server, proxy }))
}

struct Own<S> {
    server: S,
    proxy: Proxy,
}

fn failed(error: test_servers::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "a server of the case's own").because(error)
}

impl<S> Server for Own<S>
where
    S: Deref<Target = Process> + Send + Sync + 'static,
{
    fn kill(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.server.kill().await.map_err(failed) })
    }

    fn start(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.server.start().await.map_err(failed) })
    }

    fn restart(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { self.server.restart().await.map_err(failed) })
    }

    fn pause(&self) -> Result<()> {
        self.server.pause().map_err(failed)
    }

    fn resume(&self) -> Result<()> {
        self.server.resume().map_err(failed)
    }

    fn cut(&self) {
        self.proxy.cut();
    }

    fn swallow(&self) {
        self.proxy.swallow(Direction::Both);
    }

    fn slow(&self, latency: Duration) {
        self.proxy.slow(Direction::Both, latency, 0);
    }

    fn heal(&self) {
        self.proxy.heal();
    }
}
