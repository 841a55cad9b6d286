//! Outstanding calls of one connection, and what happens to them: frames, notices, failures.

use std::collections::HashMap;
use std::sync::Mutex;

use bytes::Bytes;
use lapin::message::Delivery;
use smol_str::SmolStr;
use tokio::sync::mpsc;

use super::codec;
use event_transport::Frame;
use event_transport::error::{Error, ErrorKind};
use event_transport::headers;
use event_transport::sync::lock;

/// Outstanding calls of one connection, by number.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<HashMap<u64, Call>>);

#[derive(Debug)]
struct Call {
    events: mpsc::UnboundedSender<Event>,
    /// The inbox of the server that has the request.
    server: Option<SmolStr>,
}

/// An event of one call.
#[derive(Debug)]
pub(super) enum Event {
    Frame(Frame),
    Taken(SmolStr),
    Failed(Error),
}

pub(super) fn unavailable(text: &str) -> Error {
    Error::new(ErrorKind::Unavailable, text)
}

impl Calls {
    /// Opens a call; its events arrive in the returned queue.
    pub(super) fn open(&self, number: u64) -> mpsc::UnboundedReceiver<Event> {
        let (events, incoming) = mpsc::unbounded_channel();
        lock(&self.0).insert(number, Call { events, server: None });
        incoming
    }

    pub(super) fn remove(&self, number: u64) {
        lock(&self.0).remove(&number);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    fn send(&self, number: u64, event: Event) {
        if let Some(call) = lock(&self.0).get(&number) {
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
        for call in lock(&self.0).values() {
            if call.server.as_deref() == Some(server) {
                let _ = call
                    .events
                    .send(Event::Failed(unavailable("the server ended before it answered the request")));
            }
        }
    }

    /// Ends all calls, because the inbox is lost and no answer can arrive.
    pub(super) fn end_all(&self) {
        for call in lock(&self.0).values() {
            let _ = call.events.send(Event::Failed(unavailable(
                "the connection was lost while the request was in progress",
            )));
        }
    }

    /// Handles a message of the server to the call.
    pub(super) fn take(&self, number: u64, kind: &str, delivery: Delivery) {
        let server = delivery.properties.reply_to().as_ref().map(|inbox| SmolStr::new(inbox.as_str()));
        if let (Some(server), Some(call)) = (server, lock(&self.0).get_mut(&number))
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
}

fn frame(delivery: Delivery) -> Frame {
    let headers = codec::Fields(delivery.properties.headers().as_ref());
    let last = headers.text(headers::FRAME).as_deref() != Some("more");
    let (content_type, headers) = codec::read_frame(&delivery.properties);
    Frame { headers, content_type, payload: Bytes::from(delivery.data), last }
}
