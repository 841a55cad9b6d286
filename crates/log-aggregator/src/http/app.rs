//! The state that all handlers share.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::config::Config;
use crate::ingest::Ingest;
use crate::live::Live;
use crate::store::LogStore;

/// The state that all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn LogStore>,
    pub(crate) ingest: Ingest,
    pub(crate) live: Arc<Live>,
    pub(crate) viewers: Arc<Semaphore>,
    pub(crate) files: reqwest::Client,
}
