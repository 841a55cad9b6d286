//! Serving: members of a queue group take requests while they have room, and say so when they have none.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Message as NatsMessage, Subject as NatsSubject};
use bytes::Bytes;
use futures_util::StreamExt;
use jiff::Timestamp;
use smol_str::SmolStr;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::error::closed;
use super::requests::{BUSY, FRAMES, GONE, HELD, frame_headers};
use super::services::Endpoint;
use super::wire;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::MessageId;
use crate::status::{Code, STATUS, STATUS_MESSAGE};
use crate::subject::Subject;
use crate::transport::{Frame, IncomingRequest, Respond, Responder, Serve, wire as names};

mod callers;

/// After this time a caller is told that its request is being worked on.
const HOLD: Duration = Duration::from_millis(100);
/// Callers that say no deadline are not waited for beyond this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Requests of plain clients that wait for room.
const BACKLOG: usize = 1024;

/// Requests in the hands of this connection's servers, by their reply subject.
#[derive(Default)]
pub(super) struct Served {
    calls: Mutex<HashMap<SmolStr, Arc<Held>>>,
    /// There is something to watch again.
    grown: tokio::sync::Notify,
    started: OnceCell<()>,
}

/// One request that is being answered.
struct Held {
    reply: NatsSubject,
    gone: CancellationToken,
    deadline: Instant,
    since: Instant,
    /// The caller is of this library: it knows of frames, room and questions.
    ours: bool,
    flow: Mutex<Flow>,
}

/// How many frames may still be sent, and what waits.
struct Flow {
    room: usize,
    parked: VecDeque<(OutboundMessage, bool, Option<Answer<()>>)>,
    told: bool,
}

impl Served {
    fn lock(&self) -> MutexGuard<'_, HashMap<SmolStr, Arc<Held>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn serve(
    connection: &Arc<Connection>,
    spec: Serve,
) -> Result<mpsc::Receiver<IncomingRequest>> {
    if connection.courier.is_closing() {
        return Err(closed());
    }
    if spec.subjects.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a member of a service needs at least one subject")
            .with("service", spec.service));
    }
    connection.serve_calls().await?;
    let credit = spec.credit.max(1);
    let (requests, incoming) = mpsc::channel(credit);
    let room = Arc::new(Semaphore::new(credit));
    for subject in &spec.subjects {
        let name = connection.names.request(subject);
        let requested = connection.client.queue_subscribe(name, "q".to_owned()).await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
        })?;
        let endpoint = connection.enlist(&spec.service, subject).await;
        let counter = Counter {
            connection: Arc::downgrade(connection),
            subject: subject.clone(),
            requests: requests.clone(),
            room: room.clone(),
            waiting: Arc::new(AtomicUsize::new(0)),
            endpoint,
        };
        connection.tasks.spawn(counter.run(requested, connection.courier.clone()));
    }
    // Whoever calls it from now on must find it.
    connection.round_trip().await?;
    Ok(incoming)
}

/// Takes the requests of one subject.
struct Counter {
    connection: Weak<Connection>,
    subject: Subject,
    requests: mpsc::Sender<IncomingRequest>,
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    endpoint: Arc<Endpoint>,
}

impl Counter {
    async fn run(self, mut requested: async_nats::Subscriber, courier: Arc<super::courier::Courier>) {
        loop {
            let request = tokio::select! {
                biased;
                () = self.requests.closed() => break,
                () = courier.closing() => break,
                request = requested.next() => request,
            };
            let (Some(request), Some(connection)) = (request, self.connection.upgrade()) else { break };
            self.take(&connection, request);
        }
        let _ = requested.unsubscribe().await;
        self.endpoint.leave();
    }

    fn take(&self, connection: &Arc<Connection>, request: NatsMessage) {
        let Some(reply) = request.reply.clone() else { return };
        let deadline = (request.headers.as_ref())
            .and_then(|headers| wire::get(headers, names::DEADLINE))
            .and_then(names::time);
        match self.room.clone().try_acquire_owned() {
            Ok(permit) => self.begin(connection, request, reply, deadline, permit),
            Err(_) if deadline.is_some() => {
                let mut headers = HeaderMap::new();
                headers.insert(names::FRAME, BUSY);
                connection.courier.send(OutboundMessage {
                    subject: reply,
                    reply: None,
                    payload: Bytes::new(),
                    headers: Some(headers),
                });
            }
            Err(_) if self.waiting.fetch_add(1, Ordering::AcqRel) < BACKLOG => {
                // A plain client knows nothing of `busy`: it waits here.
                let (connection, counter) = (connection.clone(), self.clone());
                tokio::spawn(async move {
                    let permit = tokio::time::timeout(LONGEST, counter.room.clone().acquire_owned()).await;
                    counter.waiting.fetch_sub(1, Ordering::AcqRel);
                    if let Ok(Ok(permit)) = permit {
                        counter.begin(&connection, request, reply, None, permit);
                    }
                });
            }
            Err(_) => {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                let headers = error_headers(429, "the service has no room");
                connection.courier.send(OutboundMessage {
                    subject: reply,
                    reply: None,
                    payload: Bytes::new(),
                    headers: Some(headers),
                });
            }
        }
    }

    fn begin(
        &self,
        connection: &Arc<Connection>,
        request: NatsMessage,
        reply: NatsSubject,
        deadline: Option<Timestamp>,
        permit: OwnedSemaphorePermit,
    ) {
        let within = deadline.map_or(LONGEST, |at| {
            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default()
        });
        if within.is_zero() {
            return; // the caller has heard of its deadline by itself
        }
        let id = || MessageId::Text(reply.as_str().into());
        let message = wire::message(request.headers.as_ref(), request.payload, self.subject.clone(), id);
        let now = Instant::now();
        let held = Arc::new(Held {
            reply: reply.clone(),
            gone: CancellationToken::new(),
            deadline: now.checked_add(within).unwrap_or(now + LONGEST),
            since: now,
            ours: deadline.is_some(),
            flow: Mutex::new(Flow { room: FRAMES, parked: VecDeque::new(), told: false }),
        });
        connection.served.lock().insert(reply.as_str().into(), held.clone());
        connection.served.grown.notify_one();
        let respond = Reply {
            connection: connection.clone(),
            held: held.clone(),
            endpoint: self.endpoint.clone(),
            _permit: permit,
        };
        let responder = Responder::new(Box::new(respond), held.gone.clone());
        let incoming = IncomingRequest { message: Arc::new(message), within, responder };
        // As many as there are permits fit; a receiver that is gone drops it, which tells the caller.
        drop(self.requests.try_send(incoming));
    }
}

impl Clone for Counter {
    fn clone(&self) -> Self {
        Self {
            connection: self.connection.clone(),
            subject: self.subject.clone(),
            requests: self.requests.clone(),
            room: self.room.clone(),
            waiting: self.waiting.clone(),
            endpoint: self.endpoint.clone(),
        }
    }
}

/// The server's end of one answer.
struct Reply {
    connection: Arc<Connection>,
    held: Arc<Held>,
    endpoint: Arc<Endpoint>,
    _permit: OwnedSemaphorePermit,
}

impl Respond for Reply {
    fn send(&mut self, mut frame: Frame) -> Confirm<()> {
        let refuse = |error: Error| Confirm::ready(Err(error.during("reply")));
        if self.held.gone.is_cancelled() {
            return refuse(Error::new(ErrorKind::Closed, "nobody waits for this answer any more"));
        }
        let mut headers = frame_headers(&mut frame);
        let bytes = frame.payload.len() + wire::wire_len(&headers);
        if bytes > self.connection.max_wire {
            return refuse(
                Error::new(ErrorKind::TooLarge, "the frame is larger than the server takes")
                    .with("bytes", bytes)
                    .with("limit", self.connection.max_wire),
            );
        }
        let failed = failure(&frame, &mut headers);
        if !frame.last {
            headers.insert(names::REPLY_TO, self.connection.names.calls(&self.connection.id));
        }
        let letter = OutboundMessage {
            subject: self.held.reply.clone(),
            reply: None,
            payload: frame.payload,
            headers: Some(headers),
        };
        let mut flow = self.held.flow();
        if flow.parked.is_empty() && (frame.last || !self.held.ours || flow.room > 0) {
            flow.room = flow.room.saturating_sub(1);
            drop(flow);
            self.connection.courier.send(letter);
            if frame.last {
                self.finish(failed);
            }
            return Confirm::ready(Ok(()));
        }
        if flow.parked.len() >= if frame.last { 2 } else { 1 } {
            return refuse(Error::new(
                ErrorKind::Full,
                "the caller reads slower than frames are sent; await each confirmation before the next frame",
            ));
        }
        let (answer, confirm) = Confirm::channel();
        flow.parked.push_back((letter, frame.last, Some(answer)));
        confirm
    }

    fn abandoned(&mut self) {
        let mut headers = error_headers(503, "the server let go of the request without an answer");
        headers.insert(names::FRAME, GONE);
        let letter = OutboundMessage {
            subject: self.held.reply.clone(),
            reply: None,
            payload: Bytes::new(),
            headers: Some(headers),
        };
        self.connection.courier.send(letter);
        self.finish(Some("the server let go of the request without an answer".into()));
    }
}

impl Reply {
    fn finish(&self, failed: Option<SmolStr>) {
        self.connection.served.lock().remove(self.held.reply.as_str());
        self.endpoint.count(self.held.since.elapsed(), failed);
    }
}

fn error_headers(code: u16, text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    wire::put(&mut headers, "Nats-Service-Error", text);
    wire::put(&mut headers, "Nats-Service-Error-Code", &code.to_string());
    headers
}

/// Says in the words of NATS' own tools that an answer is an error; what it says.
fn failure(frame: &Frame, headers: &mut HeaderMap) -> Option<SmolStr> {
    let code: Code = frame.headers.get(STATUS)?.parse().unwrap_or(Code::Unknown);
    if code == Code::Ok {
        return None;
    }
    let text = frame.headers.get(STATUS_MESSAGE).map(names::unescape).filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| code.as_str().into());
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for (name, values) in error_headers(code.http(), line.trim()).iter() {
        if let Some(value) = values.first() {
            wire::put(headers, name.as_ref(), value.as_str());
        }
    }
    Some(text)
}
