//! One reply: frames in order from the server to the caller, a bounded number of them at a time, until its deadline.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::closed;
use super::servers::Slot;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Subject;
use crate::{Frame, Replies, Respond};

/// Largest number of frames of one reply that are buffered for the caller.
const FRAMES: usize = 64;

/// A frame for which the buffer had no room, and the confirmation of its sender.
type Parked = (Result<Frame>, Option<Answer<()>>);

/// The server's side of one reply.
pub(super) struct Reply {
    frames: mpsc::Sender<Result<Frame>>,
    parked: mpsc::Sender<Parked>,
    /// A frame is parked, and no other frame may overtake it.
    busy: Arc<AtomicBool>,
    gone: CancellationToken,
    _slot: Slot,
}

/// Supervises one call until it ends: forwards parked frames, and reports a deadline or a closed connection.
pub(super) struct Watch {
    frames: mpsc::Sender<Result<Frame>>,
    waiting: mpsc::Receiver<Parked>,
    busy: Arc<AtomicBool>,
    deadline: Instant,
    gone: CancellationToken,
    caller: CancellationToken,
    server: CancellationToken,
    subject: Subject,
}

/// Creates both ends of a reply and its supervision. `caller` ends when the caller's connection closes.
pub(super) fn open(
    slot: Slot,
    caller: CancellationToken,
    subject: Subject,
    deadline: Instant,
) -> (Reply, Replies, Watch) {
    // One slot more than frames may use, so that an error always fits.
    let (frames, received) = mpsc::channel(FRAMES + 1);
    let (parked, waiting) = mpsc::channel(1);
    let gone = CancellationToken::new();
    let busy = Arc::new(AtomicBool::new(false));
    let watch = Watch {
        frames: frames.clone(),
        waiting,
        busy: busy.clone(),
        deadline,
        gone: gone.clone(),
        caller,
        server: slot.server.closed.clone(),
        subject,
    };
    let replies = Replies::new(received, Some(gone.clone()));
    (Reply { frames, parked, busy, gone, _slot: slot }, replies, watch)
}

pub(super) fn timeout(subject: &Subject) -> Error {
    Error::new(ErrorKind::Timeout, "no answer within the deadline").with("subject", subject)
}

impl Reply {
    /// Cancelled when the caller no longer waits or its deadline has passed.
    pub(super) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }
}

impl Respond for Reply {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        if self.gone.is_cancelled() || self.frames.is_closed() {
            let error = Error::new(ErrorKind::Closed, "the caller no longer waits for this answer");
            return Confirm::ready(Err(error.during("reply")));
        }
        let parked = self.busy.load(Ordering::Acquire);
        if !parked && self.frames.capacity() > 1 && self.frames.try_send(Ok(frame.clone())).is_ok() {
            return Confirm::ready(Ok(()));
        }
        let (answer, confirm) = Confirm::channel();
        if !parked {
            self.busy.store(true, Ordering::Release);
            if self.parked.try_send((Ok(frame), Some(answer))).is_ok() {
                return confirm;
            }
        }
        let error = Error::new(
            ErrorKind::Full,
            "the caller reads slower than frames are sent; await each confirmation before the next frame",
        );
        Confirm::ready(Err(error.during("reply")))
    }

    fn abandoned(&mut self) {
        let error = Error::new(ErrorKind::Unavailable, "the server dropped the request without an answer");
        let _ = self.parked.try_send((Err(error.during("request")), None));
    }
}

impl Watch {
    pub(super) async fn run(mut self) {
        let error = tokio::select! {
            biased;
            () = self.gone.cancelled() => return,
            () = pump(&mut self.waiting, &self.frames, &self.busy) => return,
            () = self.caller.cancelled() => closed(),
            () = self.server.cancelled() => Error::new(ErrorKind::Unavailable, "the server closed before it answered"),
            () = tokio::time::sleep_until(self.deadline) => timeout(&self.subject),
        };
        let _ = self.frames.try_send(Err(error.during("request")));
        self.gone.cancel();
    }
}

/// Moves parked frames to the caller as it makes room. Ends when the reply has ended or the caller has dropped it.
async fn pump(waiting: &mut mpsc::Receiver<Parked>, frames: &mpsc::Sender<Result<Frame>>, busy: &AtomicBool) {
    while let Some((frame, answer)) = waiting.recv().await {
        // Two slots, so that one stays free for an error.
        let Ok(mut room) = frames.reserve_many(2).await else { return };
        if let Some(room) = room.next() {
            room.send(frame);
        }
        drop(room);
        busy.store(false, Ordering::Release);
        if let Some(answer) = answer {
            let _ = answer.send(Ok(()));
        }
    }
}
