//! Calls: sends each request, `mandatory`, to the queue of its subject, and receives the answer in the caller's inbox.
//!
//! It uses an inbox queue of this library and not the broker's direct reply-to: both ends can then detect that the
//! other has ended, because messages to its inbox are returned.
//!
//! ```text
//!  caller ── request ──▶ NS.rpc.SUBJECT ──▶ member          no member: returned, `NoResponder`
//!         ◀── taken (after 20 ms, then every 2 s) ──        returned: the caller has ended
//!         ◀── frame, frame, … last │ abandoned ────
//!         ── more n │ gone ──▶                              returned: the member has ended
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::types::{AMQPValue, ShortString};
use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::calls::{Calls, Event, unavailable};
use super::client::Client;
use super::codec;
use super::mailbox::{Mailbox, numbered};
use super::served::WINDOW;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::message::Message;
use event_transport::{Frame, Replies};

/// How often a caller checks that its server still exists.
const LOOK: Duration = Duration::from_secs(1);

/// Calls of one connection.
#[derive(Debug)]
pub(super) struct Caller {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    calls: Arc<Calls>,
}

impl Caller {
    pub(super) fn new(client: Arc<Client>, mailbox: Arc<Mailbox>, calls: Arc<Calls>) -> Self {
        Self { client, mailbox, calls }
    }

    /// Sends the request to one member that serves its subject.
    pub(super) async fn call(&self, request: Message, within: Duration) -> Result<Replies> {
        let deadline = bounds::from_now(within);
        let queue = self.client.names.requests(request.subject.as_str());
        let inbox = self.mailbox.inbox().await?;
        let number = self.mailbox.number();
        let incoming = self.calls.open(number);
        let (sender, frames) = mpsc::channel(1);
        let gone = CancellationToken::new();
        let mut waiting = Waiting {
            client: self.client.clone(),
            mailbox: self.mailbox.clone(),
            calls: self.calls.clone(),
            number,
            inbox: inbox.clone(),
            queue: queue.clone(),
            incoming,
            server: None,
            pending: VecDeque::new(),
        };
        let millis = bounds::millis(within).clamp(1, u64::from(u32::MAX));
        let until =
            Timestamp::now().as_millisecond().saturating_add(i64::try_from(millis).unwrap_or(i64::MAX));
        let mut table = lapin::types::FieldTable::default();
        table.insert(headers::DEADLINE.into(), AMQPValue::LongLongInt(until));
        let properties = codec::copy(&request, &codec::Facts::default(), table)?
            .with_delivery_mode(1)
            .with_type("request".into())
            .with_correlation_id(number.to_string().into())
            .with_reply_to(inbox)
            .with_expiration(millis.to_string().into());
        // The answer may arrive before the confirmation, and both may arrive after the deadline.
        let sent = tokio::select! {
            sent = self.mailbox.tell(queue, properties, &request.payload) => sent,
            () = sleep_until(deadline) => Err(Error::new(ErrorKind::Timeout, "the deadline passed before the request was sent")),
        };
        if !sent? {
            return Err(Error::new(ErrorKind::NoResponder, "no responder serves this subject"));
        }
        // The returned request may have arrived with the confirmation of another call.
        if let Ok(event) = waiting.incoming.try_recv() {
            match event {
                Event::Failed(error) if error.kind() == ErrorKind::NoResponder => return Err(error),
                event => drop(waiting.accept(event)),
            }
        }
        let replies = Replies::new(frames, Some(gone.clone()));
        tokio::spawn(waiting.run(sender, gone, deadline));
        Ok(replies)
    }
}

/// One call, from the request to its end.
struct Waiting {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    calls: Arc<Calls>,
    number: u64,
    inbox: ShortString,
    /// The queue of the request.
    queue: ShortString,
    incoming: mpsc::UnboundedReceiver<Event>,
    server: Option<SmolStr>,
    /// Frames that the reader has no room for; no more than the window.
    pending: VecDeque<Result<Frame>>,
}

impl Waiting {
    /// Handles an event; returns whether it was the last one.
    fn accept(&mut self, event: Event) -> bool {
        match event {
            Event::Taken(server) => {
                self.server = Some(server);
                false
            }
            Event::Frame(frame) => {
                let last = frame.last;
                self.pending.push_back(Ok(frame));
                last
            }
            Event::Failed(error) => {
                self.pending.push_back(Err(error));
                true
            }
        }
    }

    fn ended(&self) -> bool {
        self.pending.back().is_some_and(|frame| frame.as_ref().map_or(true, |frame| frame.last))
    }

    async fn tell(&self, kind: &str, body: &str) {
        if let Some(server) = &self.server {
            let properties = numbered(kind, self.number).with_reply_to(self.inbox.clone());
            let _ = self.mailbox.tell(server.as_str().into(), properties, body.as_bytes()).await;
        }
    }

    /// Whether the broker has no queue of the request.
    async fn is_unserved(&self) -> bool {
        matches!(self.client.declarer.counts(self.queue.clone()).await, Ok(None))
    }

    async fn run(mut self, sender: mpsc::Sender<Result<Frame>>, gone: CancellationToken, deadline: Instant) {
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        let mut read = 0;
        let mut ended = self.ended();
        loop {
            if ended {
                self.calls.remove(self.number);
                if self.pending.is_empty() {
                    return;
                }
            }
            tokio::select! {
                biased;
                () = gone.cancelled() => {
                    if !ended {
                        self.tell("gone", "").await;
                    }
                    return;
                }
                room = sender.reserve(), if !self.pending.is_empty() => {
                    let Ok(room) = room else { continue };
                    let frame = self.pending.pop_front().expect("not empty");
                    room.send(frame);
                    read += 1;
                    if read == WINDOW / 2 && !ended {
                        read = 0;
                        self.tell("more", &(WINDOW / 2).to_string()).await;
                    }
                }
                event = self.incoming.recv(), if !ended => {
                    if let Some(event) = event {
                        ended = self.accept(event);
                    }
                }
                () = self.client.closing.cancelled(), if !ended => {
                    self.tell("gone", "").await;
                    self.pending.push_back(Err(super::error::closed()));
                    ended = true;
                }
                () = sleep_until(deadline), if !ended => {
                    self.tell("gone", "").await;
                    self.pending.push_back(Err(Error::new(ErrorKind::Timeout, "no answer within the deadline")));
                    ended = true;
                }
                _ = looks.tick(), if !ended => match &self.server {
                    Some(_) => self.tell("more", "0").await,
                    // The server died before it could send a notice, and it was the last one that served the subject.
                    None if self.is_unserved().await => {
                        self.pending.push_back(Err(unavailable("the server ended before it answered the request")));
                        ended = true;
                    }
                    None => {}
                },
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.calls.remove(self.number);
    }
}
