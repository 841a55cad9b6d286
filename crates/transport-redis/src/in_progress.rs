//! The requests that one server has taken and not answered yet.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use redis::Pipeline;
use smol_str::SmolStr;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::frame::{self, BEAT, Packet, WINDOW};
use event_transport::headers;
use event_transport::sync::lock;

/// The caller's channel and the caller's number of the request.
pub(super) type RequestKey = (SmolStr, SmolStr);

/// Requests in progress.
#[derive(Default)]
pub(super) struct InProgress(Mutex<HashMap<RequestKey, Arc<Active>>>);

/// A request in progress.
pub(super) struct Active {
    since: Instant,
    pub(super) gone: CancellationToken,
    /// Number of frames that may be sent before the caller grants more.
    pub(super) window: Semaphore,
    /// The last frame was sent or the request was abandoned: the caller needs no further notice.
    pub(super) finished: AtomicBool,
}

impl InProgress {
    /// The key of the request to which a packet of a caller belongs.
    pub(super) fn key(packet: &Packet) -> Option<RequestKey> {
        Some((packet.get(headers::REPLY_TO)?.into(), packet.get(frame::REQUEST)?.into()))
    }

    pub(super) fn begin(&self, key: RequestKey) -> Arc<Active> {
        let active = Arc::new(Active {
            since: Instant::now(),
            gone: CancellationToken::new(),
            window: Semaphore::new(WINDOW),
            finished: AtomicBool::new(false),
        });
        lock(&self.0).insert(key, active.clone());
        active
    }

    pub(super) fn end(&self, key: &RequestKey) {
        lock(&self.0).remove(key);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Grants further frames to an answer.
    pub(super) fn grant(&self, key: &RequestKey, frames: usize) {
        if let Some(active) = lock(&self.0).get(key) {
            active.window.add_permits(frames.min(WINDOW));
        }
    }

    /// Cancels a request whose caller no longer waits.
    pub(super) fn cancel(&self, key: &RequestKey) {
        if let Some(active) = lock(&self.0).get(key) {
            active.gone.cancel();
        }
    }

    /// The notices to callers that have waited long for an answer: their requests are in progress.
    pub(super) fn working(&self) -> Pipeline {
        let mut notices = Pipeline::new();
        for ((caller, request), active) in &*lock(&self.0) {
            if active.since.elapsed() >= BEAT && !active.finished.load(Ordering::Relaxed) {
                notices.cmd("PUBLISH").arg(caller.as_str()).arg(&frame::notice("working", request)[..]);
            }
        }
        notices
    }

    /// Ends all requests; returns the notices to their callers that no answer will come.
    pub(super) fn abandon_all(&self) -> Pipeline {
        let mut notices = Pipeline::new();
        for ((caller, request), active) in lock(&self.0).drain() {
            active.gone.cancel();
            if !active.finished.swap(true, Ordering::Relaxed) {
                notices.cmd("PUBLISH").arg(caller.as_str()).arg(&frame::notice("abandoned", &request)[..]);
            }
        }
        notices
    }
}
