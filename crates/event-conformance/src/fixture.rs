//! What a transport brings to the exam: fresh storage, as a URL.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use event_client::Result;

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
}

/// What a case wants to be different from the transport's defaults.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Settings {
    /// How long a dedup id is remembered.
    pub dedup_window: Option<Duration>,
}

/// One place where messages are stored. Whoever opens its URL uses the same messages.
pub struct Storage {
    url: String,
    /// Dropped with the storage: a directory, a server.
    _keep: Box<dyn Any + Send + Sync>,
}

impl Storage {
    /// The storage that `url` names; `keep` is dropped when the case has ended.
    pub fn new(url: impl Into<String>, keep: impl Any + Send + Sync) -> Self {
        Self { url: url.into(), _keep: Box::new(keep) }
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
