//! Requests in progress at one connection: the caller's credit for frames, and whether the caller still waits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use lapin::message::Delivery;
use smol_str::SmolStr;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use event_transport::sync::lock;

/// Maximum number of frames that are in flight and not yet read.
pub(super) const WINDOW: usize = 64;

/// The caller's inbox and its number of the request.
pub(super) type Caller = (SmolStr, u64);

/// Requests in progress, by caller.
#[derive(Debug, Default)]
pub(super) struct Served(Mutex<HashMap<Caller, InProgress>>);

/// The state of one request that its caller can change.
#[derive(Clone, Debug)]
pub(super) struct InProgress {
    /// The number of frames that may be sent.
    pub(super) room: Arc<Semaphore>,
    /// Cancelled when the caller no longer waits.
    pub(super) gone: CancellationToken,
}

impl Served {
    /// Begins a request.
    pub(super) fn begin(&self, caller: Caller) -> InProgress {
        let request = InProgress { room: Arc::new(Semaphore::new(WINDOW)), gone: CancellationToken::new() };
        lock(&self.0).insert(caller, request.clone());
        request
    }

    pub(super) fn end(&self, caller: &Caller) {
        lock(&self.0).remove(caller);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Handles a message of a caller: it no longer waits, or grants credit for more frames.
    pub(super) fn take(&self, number: u64, kind: &str, delivery: &Delivery) {
        let Some(caller) = delivery.properties.reply_to() else { return };
        let at = (SmolStr::new(caller.as_str()), number);
        let served = lock(&self.0);
        let Some(request) = served.get(&at) else { return };
        match kind {
            "gone" => request.gone.cancel(),
            _ => {
                let more = std::str::from_utf8(&delivery.data).ok().and_then(|text| text.parse().ok());
                request.room.add_permits(more.unwrap_or(0_usize).min(WINDOW));
            }
        }
    }

    /// Cancels the requests of a caller whose inbox no longer exists: a message to it was returned.
    pub(super) fn lost(&self, caller: &str) {
        let served = lock(&self.0);
        served
            .iter()
            .filter(|((inbox, _), _)| inbox == caller)
            .for_each(|(_, request)| request.gone.cancel());
    }
}
