//! Calls over core NATS: a request fails at once without a responder, and frames are read no faster than the caller
//! takes them.
//!
//! Right after a request, the call sends an empty message, an echo, to its own reply subject. The server handles the
//! messages of one connection in order, so an echo without a no-responders status before it means that a responder
//! has the request. A member without room replies `busy`, and the call tries again until its deadline. A server that
//! works for long replies that it holds the call, with the subject on which it is reached; from then on the call
//! requests its status at intervals.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Message as NatsMessage, StatusCode, Subject as NatsSubject};
use bytes::Bytes;
use futures_util::StreamExt;
use smol_str::SmolStr;
use tokio::sync::{OnceCell, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::Failure;
use super::client::Client;
use super::codec;
use super::error::{Denied, closed};
use super::frame::{BUSY, FRAMES, GONE, HELD, read_frame};
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::subject::Subject;
use event_transport::sync::lock;
use event_transport::{Frame, Replies, headers};

/// Internal status of a call that the server denies. No other client can send a status without headers.
const REFUSED: StatusCode = StatusCode::REQUEST_TERMINATED;
/// Interval of the status requests to a server that holds a call.
const ASK: Duration = Duration::from_secs(1);
/// A live server sends a message within this time.
const SILENCE: Duration = Duration::from_secs(10);

/// Open calls, by the last token of their reply subject.
type Open = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<NatsMessage>>>>;

/// The calls of this connection.
pub(super) struct Calls {
    client: Arc<Client>,
    inbox: OnceCell<String>,
    open: Open,
}

impl Calls {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        Self { client: client.clone(), inbox: OnceCell::new(), open: Open::default() }
    }

    /// Returns the inbox of all calls, and starts the task that dispatches its messages.
    async fn inbox(&self) -> Result<&String> {
        self.inbox
            .get_or_try_init(|| async {
                let link = &self.client.link;
                let inbox = link.nats.new_inbox();
                let mut replies = link.nats.subscribe(format!("{inbox}.*")).await.map_err(|error| {
                    Error::new(ErrorKind::Unavailable, "no inbox for replies").because(error)
                })?;
                let (open, closed) = (self.open.clone(), self.client.closed.clone());
                let mut denied = link.denied.subscribe();
                self.client.vital("nats replies", async move {
                    loop {
                        let reply = tokio::select! {
                            reply = replies.next() => reply,
                            refused = denied.recv() => {
                                if let Ok(refused) = refused {
                                    tell_all(&open, &refused);
                                }
                                continue;
                            }
                            () = closed.cancelled() => None,
                        };
                        let Some(reply) = reply else { return };
                        let number =
                            reply.subject.as_str().rsplit('.').next().and_then(|text| text.parse().ok());
                        let open = lock(&open);
                        if let Some(call) = number.and_then(|number: u64| open.get(&number)) {
                            let _ = call.send(reply);
                        }
                    }
                });
                Ok(inbox)
            })
            .await
    }

    /// Sends a request. Resolves when a responder is known to have it.
    pub(super) async fn call(&self, request: Message, within: Duration) -> Result<Replies> {
        let client = &self.client;
        let inbox = self.inbox().await?;
        let number = client.next_id();
        let (sender, incoming) = mpsc::unbounded_channel();
        lock(&self.open).insert(number, sender);
        let place = Place { open: self.open.clone(), number };
        let start = Instant::now();
        let deadline = bounds::later(start, within);
        let mut headers = codec::headers(&request);
        codec::put(&mut headers, headers::DEADLINE, &headers::millis(bounds::time_from_now(within)));
        client.server.fits(&request, &headers)?;
        let (frames, replies) = mpsc::channel(FRAMES + 1);
        let (accepted, answer) = oneshot::channel();
        let gone = CancellationToken::new();
        let call = Call {
            client: client.clone(),
            request: RequestMessage {
                to: NatsSubject::from(client.names.request(&request.subject)),
                subject: request.subject,
                reply: NatsSubject::from(format!("{inbox}.{number}")),
                headers,
                payload: request.payload,
                sent: 0,
            },
            caller: Caller { frames, accepted: Some(accepted), gone: gone.clone(), deadline },
            incoming,
            server: None,
            passed: 0,
            _place: place,
        };
        tokio::spawn(call.run());
        match answer.await {
            Ok(Ok(())) => Ok(Replies::new(replies, Some(gone))),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(closed()),
        }
    }
}

/// Notifies every call of a denied subject; the call that used it recognises it.
fn tell_all(open: &Open, refused: &Denied) {
    for call in lock(open).values() {
        let _ = call.send(NatsMessage {
            subject: refused.subject.as_str().into(),
            reply: None,
            payload: Bytes::new(),
            headers: None,
            status: Some(REFUSED),
            description: None,
            length: 0,
        });
    }
}

/// One call's entry in the table. After it is dropped, further replies to the call are ignored.
struct Place {
    open: Open,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.open).remove(&self.number);
    }
}

/// The state of a call until it has ended.
struct Call {
    client: Arc<Client>,
    request: RequestMessage,
    caller: Caller,
    incoming: mpsc::UnboundedReceiver<NatsMessage>,
    /// Subject on which the server that holds the call is reached.
    server: Option<SmolStr>,
    /// Frames passed to the caller since the server was last notified of room.
    passed: usize,
    _place: Place,
}

/// The request, as it is sent to a member.
struct RequestMessage {
    subject: Subject,
    to: NatsSubject,
    reply: NatsSubject,
    headers: HeaderMap,
    payload: Bytes,
    /// Number of times it was sent, to find a member with room.
    sent: u32,
}

/// The caller's side of a call.
struct Caller {
    frames: mpsc::Sender<Result<Frame>>,
    /// Present until a responder is known to have the request.
    accepted: Option<oneshot::Sender<Result<()>>>,
    gone: CancellationToken,
    deadline: Instant,
}

/// Whether a call continues.
enum Step {
    Go,
    End,
}

impl Call {
    async fn run(mut self) {
        self.send();
        let mut heard = Instant::now();
        let closing = self.client.outbound.clone();
        loop {
            let pause = if self.server.is_some() { ASK } else { SILENCE };
            let step = tokio::select! {
                message = self.incoming.recv() => {
                    heard = Instant::now();
                    match message {
                        Some(message) => self.on_message(message).await,
                        None => Step::End,
                    }
                }
                () = self.caller.gone.cancelled() => { self.leave(); Step::End }
                () = closing.closing() => { self.leave(); self.fail(closed()); Step::End }
                () = tokio::time::sleep_until(self.caller.deadline) => {
                    self.fail(Error::new(ErrorKind::Timeout, "no answer within the deadline"));
                    Step::End
                }
                () = tokio::time::sleep_until(heard + pause) => {
                    heard = Instant::now();
                    self.look().await
                }
            };
            if let Step::End = step {
                return;
            }
        }
    }

    fn send(&mut self) {
        self.request.sent += 1;
        let outbound = &self.client.outbound;
        outbound.send(OutboundMessage {
            subject: self.request.to.clone(),
            reply: Some(self.request.reply.clone()),
            headers: Some(self.request.headers.clone()),
            payload: self.request.payload.clone(),
        });
        if self.caller.accepted.is_some() {
            outbound.send_bare(self.request.reply.clone(), None, Bytes::new());
        }
    }

    async fn on_message(&mut self, message: NatsMessage) -> Step {
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.fail(Error::new(ErrorKind::NoResponder, "no responder serves this subject"));
            return Step::End;
        }
        if message.status == Some(REFUSED) && message.headers.is_none() {
            if message.subject == self.request.to {
                self.fail(Denied::publish(self.request.to.as_str()).error());
                return Step::End;
            }
            return Step::Go;
        }
        let kind = message.headers.as_ref().and_then(|headers| codec::get(headers, headers::FRAME));
        if let Some(server) =
            message.headers.as_ref().and_then(|headers| codec::get(headers, headers::REPLY_TO))
        {
            self.server = Some(server.into());
        }
        match kind {
            // The call's own echo, or the complete answer of a server without this library.
            None if message.headers.is_none()
                && message.payload.is_empty()
                && self.caller.accepted.is_some() =>
            {
                self.accept();
                Step::Go
            }
            Some(HELD) => {
                self.accept();
                Step::Go
            }
            Some(BUSY) => {
                self.accept();
                self.server = None;
                let most = 1_u64 << self.request.sent.min(4);
                let pause = Duration::from_micros(fastrand::u64(most * 500..=most * 1000));
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.caller.gone.cancelled() => return Step::End,
                    () = tokio::time::sleep_until(self.caller.deadline) => return Step::Go,
                }
                self.send();
                Step::Go
            }
            Some(GONE) => {
                self.accept();
                self.fail(Error::new(
                    ErrorKind::Unavailable,
                    "the server dropped the request without an answer",
                ));
                Step::End
            }
            _ => self.pass(message).await,
        }
    }

    /// Passes a frame to the caller when there is room for it.
    async fn pass(&mut self, message: NatsMessage) -> Step {
        self.accept();
        let frame = read_frame(message);
        let last = frame.last;
        tokio::select! {
            // One slot is kept for an error.
            room = self.caller.frames.reserve_many(2) => match room {
                Ok(mut room) => room.next().expect("two of them").send(Ok(frame)),
                // The caller dropped the replies; this select may see it before `gone`.
                Err(_) => { self.leave(); return Step::End }
            },
            () = self.caller.gone.cancelled() => { self.leave(); return Step::End }
            () = tokio::time::sleep_until(self.caller.deadline) => return Step::Go,
        }
        self.passed += 1;
        if !last && self.passed == FRAMES / 2 {
            self.passed = 0;
            self.tell("room");
        }
        if last { Step::End } else { Step::Go }
    }

    /// Reports to the caller that a responder has the request.
    fn accept(&mut self) {
        if let Some(accepted) = self.caller.accepted.take() {
            let _ = accepted.send(Ok(()));
        }
    }

    fn fail(&mut self, error: Error) {
        let error = error.with("subject", &self.request.subject).during("request");
        match self.caller.accepted.take() {
            Some(accepted) => drop(accepted.send(Err(error))),
            None => drop(self.caller.frames.try_send(Err(error))),
        }
    }

    /// Notifies the server that the caller no longer waits.
    fn leave(&self) {
        self.tell("gone");
    }

    fn tell(&self, what: &str) {
        // The server is known from its first reply; before that, all connections are notified.
        let to = match &self.server {
            Some(server) => server.to_string(),
            None => self.client.names.calls("all"),
        };
        let text = format!("{what} {}", self.request.reply.as_str());
        self.client.outbound.send_bare(NatsSubject::from(to), None, text.into());
    }

    /// Requests from the server whether it still works on the call.
    async fn look(&mut self) -> Step {
        let lost = "the server went away before it answered";
        if !self.client.link.is_connected() {
            return Step::Go;
        }
        let Some(server) = &self.server else {
            self.accept();
            self.fail(Error::new(ErrorKind::Unavailable, lost));
            return Step::End;
        };
        let question = format!("ask {}", self.request.reply.as_str());
        match self.client.ask(server.to_string(), question.into(), Duration::from_secs(5)).await {
            Ok(answer) if &*answer == b"yes" => Step::Go,
            // The server may have answered at this moment: received messages are processed first.
            Ok(_) if !self.incoming.is_empty() => Step::Go,
            Ok(_) | Err(Failure::NoResponder) => {
                self.fail(Error::new(ErrorKind::Unavailable, lost));
                Step::End
            }
            Err(_) => Step::Go,
        }
    }
}
