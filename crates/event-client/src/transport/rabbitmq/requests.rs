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

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use super::client_bus::{ClientBus, number_of, numbered};
use super::codec;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::transport::headers;
use crate::transport::{Frame, Replies};

/// Maximum number of frames that are in flight and not yet read.
pub(super) const WINDOW: usize = 64;
/// How often a caller checks that its server still exists.
const LOOK: Duration = Duration::from_secs(1);

/// Outstanding calls of one connection.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<HashMap<u64, Call>>);

#[derive(Debug)]
struct Call {
    events: mpsc::UnboundedSender<Event>,
    /// The inbox of the server that has the request.
    server: Option<SmolStr>,
}

#[derive(Debug)]
enum Event {
    Frame(Frame),
    Taken(SmolStr),
    Failed(Error),
}

fn unavailable(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, text)
}

impl Calls {
    fn send(&self, number: u64, event: Event) {
        if let Some(call) = self.0.lock().expect("not poisoned").get(&number) {
            let _ = call.events.send(event);
        }
    }

    /// Ends a call whose subject has no member.
    pub(super) fn nobody(&self, number: u64) {
        self.send(
            number,
            Event::Failed(Error::new(ErrorKind::NoResponder, "no responder serves this subject")),
        );
    }

    /// Ends the calls of a server whose inbox no longer exists: a message to it was returned.
    pub(super) fn lost(&self, server: &str) {
        for call in self.0.lock().expect("not poisoned").values() {
            if call.server.as_deref() == Some(server) {
                let _ = call
                    .events
                    .send(Event::Failed(unavailable("the server ended before it answered the request")));
            }
        }
    }

    /// Ends all calls, because the inbox is lost and no answer can arrive.
    pub(super) fn end_all(&self) {
        for call in self.0.lock().expect("not poisoned").values() {
            let _ = call.events.send(Event::Failed(unavailable(
                "the connection was lost while the request was in progress",
            )));
        }
    }

    pub(super) fn take(&self, kind: &str, delivery: Delivery) {
        let Some(number) = number_of(&delivery.properties) else { return };
        let server = delivery.properties.reply_to().as_ref().map(|inbox| SmolStr::new(inbox.as_str()));
        if let (Some(server), Some(call)) = (server, self.0.lock().expect("not poisoned").get_mut(&number))
            && call.server.as_ref() != Some(&server)
        {
            call.server = Some(server.clone());
            let _ = call.events.send(Event::Taken(server));
        }
        match kind {
            "frame" => self.send(number, Event::Frame(frame(delivery))),
            "abandoned" => self
                .send(number, Event::Failed(unavailable("the server dropped the request without an answer"))),
            _ => {}
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().expect("not poisoned").is_empty()
    }

    fn remove(&self, number: u64) {
        self.0.lock().expect("not poisoned").remove(&number);
    }
}

fn frame(delivery: Delivery) -> Frame {
    let headers = codec::Fields(delivery.properties.headers().as_ref());
    let last = headers.text(headers::FRAME).as_deref() != Some("more");
    let (content_type, headers) = codec::read_frame(&delivery.properties);
    Frame { headers, content_type, payload: Bytes::from(delivery.data), last }
}

/// Sends the request to one member that serves its subject.
pub(super) async fn call(
    client_bus: &Arc<ClientBus>,
    queue: ShortString,
    request: Message,
    within: Duration,
) -> Result<Replies> {
    let deadline = bounds::from_now(within);
    let inbox = client_bus.inbox().await?;
    let number = client_bus.number();
    let (events, incoming) = mpsc::unbounded_channel();
    client_bus.calls.0.lock().expect("not poisoned").insert(number, Call { events, server: None });
    let (sender, frames) = mpsc::channel(1);
    let gone = CancellationToken::new();
    let mut waiting = Waiting {
        client_bus: client_bus.clone(),
        number,
        inbox: inbox.clone(),
        queue: queue.clone(),
        incoming,
        server: None,
        pending: VecDeque::new(),
    };
    let millis = bounds::millis(within).clamp(1, u64::from(u32::MAX));
    let until = Timestamp::now().as_millisecond().saturating_add(i64::try_from(millis).unwrap_or(i64::MAX));
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
        sent = client_bus.tell(queue, properties, &request.payload) => sent,
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

/// One call, from the request to its end.
struct Waiting {
    client_bus: Arc<ClientBus>,
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
            let _ = self.client_bus.tell(server.as_str().into(), properties, body.as_bytes()).await;
        }
    }

    async fn run(mut self, sender: mpsc::Sender<Result<Frame>>, gone: CancellationToken, deadline: Instant) {
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        let mut read = 0;
        let mut ended = self.ended();
        loop {
            if ended {
                self.client_bus.calls.remove(self.number);
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
                () = self.client_bus.closed().cancelled(), if !ended => {
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
                    None if self.client_bus.is_gone(&self.queue).await => {
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
        self.client_bus.calls.remove(self.number);
    }
}
