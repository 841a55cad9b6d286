//! The calls of this process to other processes, and of others to this one.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::super::database::Database;
use event_transport::Frame;
use event_transport::error::Result;
use event_transport::sync::lock;

/// The highest number of frames of one reply that the server has written and the caller has not taken.
pub(super) const FRAMES: usize = 64;

/// The calls of this process to others, and of others to this one.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) database: Arc<Database>,
    /// Callers in this process that wait for a reply, by request id.
    pub(super) out: Mutex<HashMap<SmolStr, Call>>,
    /// Requests of other processes that members of this process handle, by request id.
    pub(super) running: Mutex<HashMap<SmolStr, CancellationToken>>,
    /// The number of members that this process has announced: with zero it need not look for requests.
    pub(super) announced: AtomicUsize,
}

/// A caller in this process that waits for a reply.
#[derive(Debug)]
pub(super) struct Call {
    /// The process of the server.
    pub(super) process: String,
    pub(super) frames: mpsc::Sender<Result<Frame>>,
}

impl Calls {
    pub(super) fn new(database: Arc<Database>) -> Self {
        Self { database, out: Mutex::default(), running: Mutex::default(), announced: AtomicUsize::new(0) }
    }

    /// Whether callers in this process wait for a reply.
    pub(super) fn is_waiting(&self) -> bool {
        !lock(&self.out).is_empty()
    }
}
