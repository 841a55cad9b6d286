//! Chooses the client of a call that names none. The choice is apart from the client itself, because the context of a
//! running task holds a client.

use std::sync::RwLock;

use super::TaskClient;
use crate::{Error, ErrorKind, Result, task::TaskContext};

static INSTALLED: RwLock<Option<TaskClient>> = RwLock::new(None);

impl TaskClient {
    /// Installs this client for every call in this process that names no other. A later installation replaces it.
    pub fn install(&self) {
        *INSTALLED.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(self.clone());
    }

    /// Returns the client for a call that names none: the client of the running task's worker, else the installed
    /// one.
    ///
    /// # Errors
    /// [`ErrorKind::NotConfigured`] when neither exists.
    pub fn current() -> Result<Self> {
        if let Some(context) = TaskContext::current() {
            return Ok(context.client().clone());
        }
        INSTALLED.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone().ok_or_else(|| {
            let text = "no task client: call `TaskClient::open(url).await?.install()` at start, or `.on(&client)` on the call";
            Error::new(ErrorKind::NotConfigured, text)
        })
    }
}
