//! Sends the frames of one request's answer, in order, each when the caller has granted credit for it.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::mailbox::{Mailbox, numbered};
use super::served::{Caller, Served, WINDOW};
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::status::Status;
use event_transport::{Frame, Respond};

/// The caller receives a notice with the responder's inbox when the answer takes longer than this.
const NOTICE: Duration = Duration::from_millis(20);
/// Interval of further notices: when one is returned, the caller has ended.
const LOOK: Duration = Duration::from_secs(2);

pub(super) enum Step {
    Frame(Frame, Answer<()>),
    Abandon,
}

/// The responder's end of one answer: passes its frames, in order, to the task that sends them.
pub(super) struct Outgoing {
    pub(super) frames: mpsc::UnboundedSender<Step>,
    pub(super) room: Arc<Semaphore>,
    pub(super) unread: usize,
}

impl Respond for Outgoing {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        self.unread += 1;
        if self.unread > WINDOW * 4 + self.room.available_permits() && self.room.available_permits() == 0 {
            // An estimate: only a responder that never awaits a confirmation gets here.
            self.unread = WINDOW * 4;
            return Confirm::ready(Err(Error::new(
                ErrorKind::Full,
                "the caller reads slower than frames are sent; await confirmations",
            )));
        }
        let (answer, confirm) = Confirm::channel();
        let room = self.room.clone();
        match self.frames.send(Step::Frame(frame, answer)) {
            Ok(()) => {
                if room.available_permits() > 0 {
                    self.unread = 0;
                }
                confirm
            }
            Err(_) => Confirm::ready(Ok(())),
        }
    }

    fn abandoned(&mut self) {
        let _ = self.frames.send(Step::Abandon);
    }
}

/// Sends one request's answer.
pub(super) struct Answering {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) served: Arc<Served>,
    pub(super) room: Arc<Semaphore>,
    pub(super) at: Caller,
    /// The correlation id of a caller that does not use this library.
    pub(super) foreign: Option<ShortString>,
    pub(super) inbox: ShortString,
    pub(super) gone: CancellationToken,
    pub(super) deadline: Instant,
    pub(super) closing: CancellationToken,
}

impl Answering {
    pub(super) async fn run(self, mut steps: mpsc::UnboundedReceiver<Step>) {
        let mut notice = Instant::now() + NOTICE;
        loop {
            let step = tokio::select! {
                biased;
                step = steps.recv() => step,
                () = sleep_until(notice) => {
                    notice = Instant::now() + LOOK;
                    if self.foreign.is_some() {
                        continue;
                    }
                    let _ = self.tell(self.properties("taken"), b"").await;
                    continue;
                }
                () = sleep_until(self.deadline), if !self.gone.is_cancelled() => {
                    self.gone.cancel();
                    continue;
                }
                () = self.closing.cancelled() => Some(Step::Abandon),
            };
            match step {
                Some(Step::Frame(frame, answer)) => {
                    let last = frame.last;
                    if !last {
                        // A caller that has ended reads nothing, so frames for it may be dropped.
                        tokio::select! {
                            permit = self.room.acquire() => permit.expect("never closed").forget(),
                            () = self.gone.cancelled() => {}
                            () = self.closing.cancelled() => {}
                        }
                    }
                    let mut sent = Ok(());
                    if !self.gone.is_cancelled() {
                        sent = self.tell(self.frame(&frame), &frame.payload).await;
                    }
                    // The broker's limit may be lower than `max_payload`.
                    let refused = sent.as_ref().err().filter(|error| error.kind() == ErrorKind::TooLarge);
                    let status = refused.map(|error| Frame::status(&Status::from(error)));
                    if let Some(status) = &status {
                        let _ = self.tell(self.frame(status), b"").await;
                    }
                    let _ = answer.send(sent);
                    if last || status.is_some() {
                        return;
                    }
                }
                Some(Step::Abandon) | None => {
                    let _ = self.tell(self.properties("abandoned"), b"").await;
                    return;
                }
            }
        }
    }

    fn properties(&self, kind: &str) -> BasicProperties {
        let properties = numbered(kind, self.at.1).with_reply_to(self.inbox.clone());
        match &self.foreign {
            Some(id) => properties.with_correlation_id(id.clone()),
            None => properties,
        }
    }

    fn frame(&self, frame: &Frame) -> BasicProperties {
        let mut table = FieldTable::default();
        table.insert(headers::FRAME.into(), codec::text(if frame.last { "last" } else { "more" }));
        codec::write_frame(self.properties("frame"), &frame.content_type, &frame.headers, table)
    }

    async fn tell(&self, properties: BasicProperties, payload: &[u8]) -> Result<()> {
        if self.at.0.is_empty() {
            return Ok(()); // the request has no reply queue
        }
        let mut tries = 0;
        loop {
            match self.mailbox.tell(self.at.0.as_str().into(), properties.clone(), payload).await {
                // The broker returns messages to its direct reply-to queue, and delivers them all the same.
                Ok(taken) => {
                    if !taken && self.foreign.is_none() {
                        self.gone.cancel();
                    }
                    return Ok(());
                }
                Err(error) => {
                    tries += 1;
                    if tries == 3 || matches!(error.kind(), ErrorKind::Closed | ErrorKind::TooLarge) {
                        return Err(error.during("reply"));
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.served.end(&self.at);
    }
}
