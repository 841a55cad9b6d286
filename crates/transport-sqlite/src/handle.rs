//! One handle of an open database file: the settings of its URL, and whether it is closed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::config::Config;
use super::connection::Open;
use super::database::Database;
use super::error::{closed, lost};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::{Durability, Message};
use event_transport::sync::lock;
use event_transport::{Capabilities, Provision};

/// One handle of a database file.
pub(super) struct Handle {
    /// `None` once closed.
    open: Mutex<Option<Arc<Open>>>,
    pub(super) database: Arc<Database>,
    pub(super) durability: Durability,
    pub(super) provision: Provision,
    pub(super) capabilities: Capabilities,
    closed: AtomicBool,
}

impl Handle {
    pub(super) fn new(open: Arc<Open>, config: &Config) -> Self {
        let mut capabilities = Capabilities::new("sqlite");
        capabilities.persistent = true;
        capabilities.shared = true;
        capabilities.max_durability = config.durability;
        capabilities.durability = config.durability;
        capabilities.max_payload = config.max_payload;
        capabilities.dedup_window = config.storage.dedup_window;
        capabilities.delayed = true;
        capabilities.expiry = true;
        capabilities.replay = true;
        capabilities.cross_topic = true;
        capabilities.keyed_members = 1;
        Self {
            database: open.database.clone(),
            open: Mutex::new(Some(open)),
            durability: config.durability,
            provision: config.provision,
            capabilities,
            closed: AtomicBool::new(false),
        }
    }

    /// The open file, for `operation`.
    pub(super) fn live(&self, operation: &'static str) -> Result<Arc<Open>> {
        let open = lock(&self.open).clone().ok_or_else(|| closed(operation))?;
        // The writer task has panicked: only a new handle, which opens the file again, can work.
        if open.database.queue.is_closed() {
            return Err(closed(operation));
        }
        open.database.file.intact().map_err(|gone| lost(&gone, operation))?;
        Ok(open)
    }

    /// The reason for which `message` cannot be published.
    pub(super) fn refuse(&self, message: &Message) -> Option<Error> {
        let about = |error: Error| error.during("publish").with("subject", &message.subject);
        if self.closed.load(Ordering::Acquire) {
            return Some(closed("publish"));
        }
        if message.durability > self.durability {
            let text = "this bus confirms publishes before the fsync; open it with `synchronous=full` for messages that must survive loss of power";
            return Some(about(Error::new(ErrorKind::Unsupported, text)));
        }
        self.capabilities.check(message).err().map(about)
    }

    /// Whether a message with the class `durability` is confirmed only after an fsync.
    pub(super) fn fsyncs(&self, durability: Durability) -> bool {
        match durability {
            Durability::Default => self.durability == Durability::Fsync,
            class => class == Durability::Fsync,
        }
    }

    /// Refuses further operations. Returns the open file, unless the handle was closed before.
    pub(super) fn close(&self) -> Option<Arc<Open>> {
        self.closed.store(true, Ordering::Release);
        lock(&self.open).take()
    }
}
