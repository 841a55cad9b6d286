//! What a transport brings to the exam: fresh storage, as a URL, and a server of its own for cases that need one.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use event_client::Result;
use futures_util::future::BoxFuture;

/// Makes storage for one transport. Every case asks for its own.
pub trait Fixture: Send + Sync + 'static {
    /// The transport's name, the first part of every case's name: `memory`.
    fn name(&self) -> &str;

    /// Storage that nothing else uses, with `settings`.
    ///
    /// # Errors
    /// When the storage cannot be made or a setting cannot be had.
    fn fresh(&self, settings: &Settings) -> Result<Storage>;

    /// A program whose `main` calls [`play_if_asked`](crate::play_if_asked), for cases with several processes.
    /// Needed only for a transport that is both persistent and shared.
    fn program(&self) -> Option<PathBuf>;

    /// Whether [`fresh`](Self::fresh) can give a server of its own. Without one the cases of faults are left out by
    /// name.
    fn has_servers(&self) -> bool {
        false
    }
}

/// A server that a case may hurt. All clients reach it through one network, which fails when it is told to.
pub trait Server: Send + Sync + 'static {
    /// Kills the server (SIGKILL); answers when it is gone.
    fn kill(&self) -> BoxFuture<'_, Result<()>>;

    /// Starts a server that is down, with its data, at the same address; answers when it is ready.
    fn start(&self) -> BoxFuture<'_, Result<()>>;

    /// Asks the server to end, and starts it again.
    fn restart(&self) -> BoxFuture<'_, Result<()>>;

    /// Stops its clock (SIGSTOP): connections stay open, nothing is answered.
    ///
    /// # Errors
    /// When it does not run.
    fn pause(&self) -> Result<()>;

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// When it does not run.
    fn resume(&self) -> Result<()>;

    /// Resets all connections; new ones get through.
    fn cut(&self);

    /// Half-open connections: bytes vanish in both directions and nobody is told, also on new ones, until
    /// [`heal`](Self::heal).
    fn swallow(&self);

    /// A slow network: bytes arrive later by `latency`, in each direction, until [`heal`](Self::heal).
    fn slow(&self, latency: Duration);

    /// A good network again.
    fn heal(&self);
}

/// What a case wants to be different from the transport's defaults.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Settings {
    /// How long a dedup id is remembered.
    pub dedup_window: Option<Duration>,
    /// A [`Server`] that nothing else uses, in [`Storage::with_server`]. Asked only of a fixture that
    /// [has some](Fixture::has_servers).
    pub own_server: bool,
    /// As few messages kept as the transport can be set to, so that a slow broadcast subscriber misses some.
    pub few_kept: bool,
}

/// One place where messages are stored. Whoever opens its URL uses the same messages.
pub struct Storage {
    url: String,
    server: Option<Box<dyn Server>>,
    /// Dropped with the storage: a directory, a shared server's vhost.
    _keep: Box<dyn Any + Send + Sync>,
}

impl Storage {
    /// The storage that `url` names; `keep` is dropped when the case has ended.
    pub fn new(url: impl Into<String>, keep: impl Any + Send + Sync) -> Self {
        Self { url: url.into(), server: None, _keep: Box::new(keep) }
    }

    /// The storage that `url` names, on a server that is the case's own and dropped with it.
    pub fn with_server(url: impl Into<String>, server: impl Server) -> Self {
        Self { url: url.into(), server: Some(Box::new(server)), _keep: Box::new(()) }
    }

    /// The server, where the case asked for its own.
    pub fn server(&self) -> Option<&dyn Server> {
        self.server.as_deref()
    }

    /// The bus URL.
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").finish_non_exhaustive()
    }
}
