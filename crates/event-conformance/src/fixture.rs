//! The interface between a transport and the exam: fresh storage as a URL, and a separate server for the
//! cases that need one.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use event_client::Result;
use futures_util::future::BoxFuture;

/// Creates storage for one transport. Every case gets its own.
pub trait Fixture: Send + Sync + 'static {
    /// Returns the transport's name, which is the first part of every case's name: `memory`.
    fn name(&self) -> &str;

    /// Creates storage that nothing else uses, with `settings`.
    ///
    /// # Errors
    /// When the storage cannot be created or a setting is not available.
    fn fresh(&self, settings: &Settings) -> Result<Storage>;

    /// Returns a program whose `main` calls [`play_if_asked`](crate::play_if_asked), for cases with several
    /// processes. Needed only for a transport that is both persistent and shared.
    fn program(&self) -> Option<PathBuf>;

    /// Returns whether [`fresh`](Self::fresh) can provide a separate server for one case. Without one, the
    /// cases of faults are skipped and listed by name.
    fn has_servers(&self) -> bool {
        false
    }
}

/// A server that a case may damage. All clients reach it through one network, which the case can make fail.
pub trait Server: Send + Sync + 'static {
    /// Kills the server (SIGKILL); returns when its process has ended.
    fn kill(&self) -> BoxFuture<'_, Result<()>>;

    /// Starts a stopped server, with its data, at the same address; returns when it is ready.
    fn start(&self) -> BoxFuture<'_, Result<()>>;

    /// Stops the server in an orderly way, and starts it again.
    fn restart(&self) -> BoxFuture<'_, Result<()>>;

    /// Suspends the server (SIGSTOP): connections stay open, and no request is answered.
    ///
    /// # Errors
    /// When the server is not running.
    fn pause(&self) -> Result<()>;

    /// Resumes a paused server.
    ///
    /// # Errors
    /// When the server is not running.
    fn resume(&self) -> Result<()>;

    /// Resets all connections; new connections work.
    fn cut(&self);

    /// Makes connections half-open: bytes are discarded in both directions, no end is notified, and new
    /// connections behave the same, until [`heal`](Self::heal).
    fn swallow(&self);

    /// Slows the network: bytes arrive later by `latency`, in each direction, until [`heal`](Self::heal).
    fn slow(&self, latency: Duration);

    /// Restores the network.
    fn heal(&self);
}

/// The settings of a case that differ from the transport's defaults.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Settings {
    /// How long a dedup id is kept.
    pub dedup_window: Option<Duration>,
    /// Whether the case needs a [`Server`] that nothing else uses, in [`Storage::with_server`]. Set only for
    /// a fixture that [has servers](Fixture::has_servers).
    pub own_server: bool,
    /// Whether to keep as few messages as the transport can be configured to, so that a slow broadcast
    /// subscriber misses some.
    pub few_kept: bool,
}

/// One place where messages are stored. Every handle opened with its URL uses the same messages.
pub struct Storage {
    url: String,
    server: Option<Box<dyn Server>>,
    /// Dropped together with the storage: a directory, or a shared server's vhost.
    _keep: Box<dyn Any + Send + Sync>,
}

impl Storage {
    /// Wraps the storage that `url` names; `keep` is dropped when the case has ended.
    pub fn new(url: impl Into<String>, keep: impl Any + Send + Sync) -> Self {
        Self { url: url.into(), server: None, _keep: Box::new(keep) }
    }

    /// Wraps the storage that `url` names, on a server that belongs to the case and is dropped with it.
    pub fn with_server(url: impl Into<String>, server: impl Server) -> Self {
        Self { url: url.into(), server: Some(Box::new(server)), _keep: Box::new(()) }
    }

    /// Returns the server, for a case with [`Settings::own_server`].
    pub fn server(&self) -> Option<&dyn Server> {
        self.server.as_deref()
    }

    /// Returns the bus URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").finish_non_exhaustive()
    }
}
