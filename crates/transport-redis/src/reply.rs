//! Sends the frames of answers: in order, never more than the caller granted credit for; waiting frames share a
//! pipeline.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Pipeline, Value};
use smol_str::SmolStr;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;

use super::codec::number;
use super::connection::Connection;
use super::error::{Failure, reply};
use super::frame;
use super::in_progress::{Active, InProgress, RequestKey};
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;
use event_transport::{Frame, Respond};

/// The parts that all answers of one server share.
pub(super) struct Answers {
    pub(super) requests: InProgress,
    pub(super) sender: Arc<ReplySender>,
    /// The channel on which this bus receives credit.
    pub(super) inbox: SmolStr,
}

/// The responder's end of one answer.
pub(super) struct Reply {
    pub(super) answers: Arc<Answers>,
    pub(super) key: RequestKey,
    pub(super) active: Arc<Active>,
    /// `true` until the first frame is sent; that frame names the channel that receives credit.
    pub(super) first: bool,
    /// A frame waits for credit: no other frame may overtake it.
    pub(super) parked: Arc<AtomicBool>,
    /// The task that ends the request at its deadline.
    pub(super) watch: AbortHandle,
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Respond for Reply {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        let refuse = |kind, text: &str| Confirm::ready(Err(Error::new(kind, text).during("reply")));
        if self.active.gone.is_cancelled() {
            return refuse(ErrorKind::Closed, "the caller no longer waits for this answer");
        }
        if self.parked.load(Ordering::Acquire) {
            return refuse(
                ErrorKind::Full,
                "the caller reads slower than frames are sent; await each confirmation before the next frame",
            );
        }
        let from = std::mem::take(&mut self.first).then_some(self.answers.inbox.as_str());
        let bytes = frame::frame(&frame, &self.key.1, from);
        if frame.last {
            self.active.finished.store(true, Ordering::Relaxed);
            self.answers.requests.end(&self.key);
        }
        let (answer, confirm) = Confirm::channel();
        let letter =
            Letter { caller: self.key.0.clone(), bytes, active: self.active.clone(), answer: Some(answer) };
        match self.active.window.try_acquire() {
            Ok(room) => {
                room.forget();
                self.answers.sender.send(letter);
            }
            Err(_) => self.park(letter),
        }
        confirm
    }

    fn abandoned(&mut self) {
        self.answers.requests.end(&self.key);
        if self.active.finished.swap(true, Ordering::Relaxed) || self.active.gone.is_cancelled() {
            return;
        }
        let bytes = frame::notice("abandoned", &self.key.1);
        let letter = Letter { caller: self.key.0.clone(), bytes, active: self.active.clone(), answer: None };
        let (sender, parked) = (self.answers.sender.clone(), self.parked.clone());
        if !parked.load(Ordering::Acquire) {
            sender.send(letter);
            return;
        }
        tokio::spawn(async move {
            // Sent after the frame that still waits for credit.
            while parked.load(Ordering::Acquire) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            sender.send(letter);
        });
    }
}

impl Reply {
    /// The caller's credit is used up: the frame waits until the caller grants more.
    fn park(&self, letter: Letter) {
        let (sender, active, parked) =
            (self.answers.sender.clone(), self.active.clone(), self.parked.clone());
        parked.store(true, Ordering::Release);
        tokio::spawn(async move {
            tokio::select! {
                room = active.window.acquire() => {
                    room.expect("the window is never closed").forget();
                    sender.send(letter);
                }
                () = active.gone.cancelled() => letter.conclude(Ok(0)),
            }
            parked.store(false, Ordering::Release);
        });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // The answer is complete or abandoned: only a parked frame still needs the deadline.
        if !self.parked.load(Ordering::Acquire) {
            self.watch.abort();
        }
    }
}

/// Maximum number of frames in one pipeline.
const BATCH: usize = 128;
/// Maximum number of pipelines in flight.
const WINDOW: usize = 4;

/// The queue of the task that sends frames. The window of each answer and the credit of each service limit its length.
pub(super) struct ReplySender(mpsc::UnboundedSender<Letter>);

/// A frame for a caller's channel.
pub(super) struct Letter {
    pub(super) caller: SmolStr,
    pub(super) bytes: Bytes,
    pub(super) active: Arc<Active>,
    /// `None` for a notice: no caller waits for its result.
    pub(super) answer: Option<Answer<()>>,
}

type Sent = (Vec<Letter>, Result<Vec<Value>, Failure>);
type Sending = Pin<Box<dyn Future<Output = Sent> + Send>>;

impl ReplySender {
    pub(super) fn open(connection: Arc<Connection>) -> Arc<Self> {
        let (queue, received) = mpsc::unbounded_channel();
        let died = connection.closed.clone();
        tokio::spawn(supervise::run("redis reply", run(connection, received), move || died.cancel()));
        Arc::new(Self(queue))
    }

    pub(super) fn send(&self, letter: Letter) {
        // Fails only after close; then the dropped `Answer` reports the error.
        drop(self.0.send(letter));
    }
}

async fn run(connection: Arc<Connection>, mut queue: mpsc::UnboundedReceiver<Letter>) {
    let mut flying: FuturesUnordered<Sending> = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            Some(sent) = flying.next() => conclude(sent),
            count = queue.recv_many(&mut batch, BATCH), if open && flying.len() < WINDOW => open = count > 0,
        }
        if batch.is_empty() {
            continue;
        }
        let mut sending = send(connection.clone(), batch);
        // The first poll passes the pipeline to the connection, so that frames stay in order.
        match futures_util::poll!(&mut sending) {
            std::task::Poll::Ready(sent) => conclude(sent),
            std::task::Poll::Pending => flying.push(sending),
        }
    }
}

fn send(connection: Arc<Connection>, batch: Vec<Letter>) -> Sending {
    Box::pin(async move {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for letter in &batch {
            pipeline.cmd("PUBLISH").arg(letter.caller.as_str()).arg(&letter.bytes[..]);
        }
        let replies = connection.run(&pipeline).await;
        (batch, replies)
    })
}

/// Reports to each sender whether its frame reached a subscriber.
fn conclude((batch, replies): Sent) {
    let mut replies = match replies {
        Ok(replies) => replies.into_iter(),
        Err(failure) => {
            let error = Error::from(failure);
            for letter in batch {
                letter.conclude(Err(Error::new(error.kind(), "not sent").because(error.to_string())));
            }
            return;
        }
    };
    for letter in batch {
        let heard = reply(replies.next().unwrap_or_default()).map(|heard| number(&heard));
        letter.conclude(heard);
    }
}

impl Letter {
    /// Reports the result to the sender; `heard` is the number of subscribers that received the frame.
    pub(super) fn conclude(self, heard: Result<i64>) {
        let result = match heard {
            Ok(1..) => Ok(()),
            Ok(_) => {
                self.active.gone.cancel();
                Err(Error::new(ErrorKind::Closed, "the caller no longer waits for this answer"))
            }
            Err(error) => Err(error),
        };
        if let Some(answer) = self.answer {
            let _ = answer.send(result.map_err(|error| error.during("reply")));
        }
    }
}
