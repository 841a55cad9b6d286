//! The server's end of an answer: frames in order, no more than the caller has room for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use smol_str::SmolStr;
use tokio::sync::OwnedSemaphorePermit;

use super::codec::number;
use super::connection::Handle;
use super::packet;
use super::serve::{Active, Service};
use crate::confirm::Confirm;
use crate::error::{Error, ErrorKind, Result};
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
        let (handle, caller) = (self.service.handle.clone(), self.key.0.clone());
        let (active, parked) = (self.active.clone(), self.parked.clone());
        parked.store(true, Ordering::Release);
        tokio::spawn(async move {
            let room = tokio::select! {
                room = active.window.clone().acquire_owned() => room.is_ok_and(|room| {
                    room.forget();
                    true
                }),
                () = active.gone.cancelled() => false,
            };
            let sent = if room { send(&handle, &caller, &bytes).await } else { Ok(0) };
            parked.store(false, Ordering::Release);
            let result = match sent {
                Ok(1..) => Ok(()),
                Ok(_) => {
                    active.gone.cancel();
                    Err(Error::new(ErrorKind::Closed, "nobody waits for this answer any more")
                        .during("reply"))
                }
                Err(error) => Err(error.during("reply")),
            };
            let _ = answer.send(result);
        });
        confirm
    }

    fn abandoned(&mut self) {
        self.service.active.lock().expect("not poisoned").remove(&self.key);
        if self.active.finished.swap(true, Ordering::Relaxed) || self.active.gone.is_cancelled() {
            return;
        }
        let (handle, (caller, request)) = (self.service.handle.clone(), self.key.clone());
        let parked = self.parked.clone();
        tokio::spawn(async move {
            // After the frame that is still on its way.
            while parked.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            send(&handle, &caller, &packet::notice("abandoned", &request)).await
        });
    }
}

/// Sends a frame; answers how many heard it.
async fn send(handle: &Handle, caller: &str, bytes: &[u8]) -> Result<i64> {
    let mut command = redis::cmd("PUBLISH");
    command.arg(caller).arg(bytes);
    handle.link.ask(command).await.map(|heard| number(&heard))
}
