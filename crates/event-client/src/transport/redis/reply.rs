//! The server's end of an answer: frames in order, no more than the caller has room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

use super::packet;
use super::post::Letter;
use super::serve::{Active, Service};
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind};
use crate::transport::{Frame, Respond};

/// The server's end of one answer.
pub(super) struct Reply {
    pub(super) service: Arc<Service>,
    /// The caller's channel and its number of the request.
    pub(super) key: (SmolStr, SmolStr),
    pub(super) active: Arc<Active>,
    /// The first frame says where credit goes.
    pub(super) first: bool,
    /// A frame waits for room: no other may overtake it.
    pub(super) parked: Arc<AtomicBool>,
    /// Ends the request at its deadline.
    pub(super) watch: AbortHandle,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Respond for Reply {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        let refuse = |kind, text: &str| Confirm::ready(Err(Error::new(kind, text).during("reply")));
        if self.active.gone.is_cancelled() {
            return refuse(ErrorKind::Closed, "nobody waits for this answer any more");
        }
        let most = self.service.handle.config.max_payload;
        if frame.payload.len() > most {
            let error = Error::new(ErrorKind::TooLarge, "the frame is larger than the bus takes")
                .with("bytes", frame.payload.len())
                .with("max_payload", most);
            return Confirm::ready(Err(error.during("reply")));
        }
        if self.parked.load(Ordering::Acquire) {
            return refuse(
                ErrorKind::Full,
                "the caller reads slower than frames are sent; await each confirmation before the next frame",
            );
        }
        let inbox = self.service.handle.keys.inbox(&self.service.handle.id);
        let from = std::mem::take(&mut self.first).then_some(inbox.as_str());
        let bytes = packet::frame(&frame, &self.key.1, from);
        if frame.last {
            self.active.finished.store(true, Ordering::Relaxed);
            self.service.active.lock().expect("not poisoned").remove(&self.key);
        }
        let (answer, confirm) = Confirm::channel();
        let letter =
            Letter { caller: self.key.0.clone(), bytes, active: self.active.clone(), answer: Some(answer) };
        let post = &self.service.handle.post;
        match self.active.window.try_acquire() {
            Ok(room) => {
                room.forget();
                post.send(letter);
            }
            Err(_) => self.park(letter),
        }
        confirm
    }

    fn abandoned(&mut self) {
        self.service.active.lock().expect("not poisoned").remove(&self.key);
        if self.active.finished.swap(true, Ordering::Relaxed) || self.active.gone.is_cancelled() {
            return;
        }
        let bytes = packet::notice("abandoned", &self.key.1);
        let letter = Letter { caller: self.key.0.clone(), bytes, active: self.active.clone(), answer: None };
        let (handle, parked) = (self.service.handle.clone(), self.parked.clone());
        if !parked.load(Ordering::Acquire) {
            handle.post.send(letter);
            return;
        }
        tokio::spawn(async move {
            // After the frame that still waits for room.
            while parked.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            handle.post.send(letter);
        });
    }
}

impl Reply {
    /// The caller has enough for now: the frame waits until it has taken some.
    fn park(&self, letter: Letter) {
        let (handle, active, parked) =
            (self.service.handle.clone(), self.active.clone(), self.parked.clone());
        parked.store(true, Ordering::Release);
        tokio::spawn(async move {
            tokio::select! {
                room = active.window.acquire() => {
                    room.expect("the window is never closed").forget();
                    handle.post.send(letter);
                }
                () = active.gone.cancelled() => letter.conclude(Ok(0)),
            }
            parked.store(false, Ordering::Release);
        });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // The answer is complete or given up: its deadline is nobody's business any more, but a parked frame's.
        if !self.parked.load(Ordering::Acquire) {
            self.watch.abort();
        }
    }
}
