//! Serves requests: members of a queue group accept requests while they have room, and reply `busy` otherwise.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_nats::{HeaderMap, Message as NatsMessage, Subject as NatsSubject};
use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::Connection;
use super::error::closed;
use super::frame::error_headers;
use super::micro::Endpoint;
use super::outbound::Outbound;
use super::reply::Reply;
use super::requests::BUSY;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::MessageId;
use crate::subject::Subject;
use crate::supervise;
use crate::transport::{IncomingRequest, Responder, Serve, headers};

/// Longest time for a request whose caller sends no deadline.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest wait until the server has read the UNSUB of a member that leaves.
const LEAVING: Duration = Duration::from_secs(2);
/// Wait for a request whose member the server chose before it read the UNSUB.
const LINGER: Duration = Duration::from_millis(50);
/// Largest number of requests of plain NATS clients that wait for room.
const BACKLOG: usize = 1024;

pub(super) async fn serve(
    connection: &Arc<Connection>,
    spec: Serve,
) -> Result<mpsc::Receiver<IncomingRequest>> {
    if connection.outbound.is_closing() {
        return Err(closed());
    }
    if spec.subjects.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a member of a service needs at least one subject")
            .with("service", spec.service));
    }
    let mut denied = connection.denied.subscribe();
    connection.serve_calls().await?;
    let max_in_flight = spec.max_in_flight.max(1);
    let (requests, incoming) = mpsc::channel(max_in_flight);
    let room = Arc::new(Semaphore::new(max_in_flight));
    let left = CancellationToken::new();
    for subject in &spec.subjects {
        let name = connection.names.request(subject);
        let requested = connection.client.queue_subscribe(name, "q".to_owned()).await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
        })?;
        let endpoint = connection.enlist(&spec, subject).await;
        let counter = Counter {
            connection: Arc::downgrade(connection),
            subject: subject.clone(),
            requests: requests.clone(),
            room: room.clone(),
            waiting: Arc::new(AtomicUsize::new(0)),
            endpoint,
            left: left.clone(),
        };
        let (counting, died) = (counter.run(requested, connection.outbound.clone()), left.clone());
        connection.tasks.spawn(supervise::run("nats serve", counting, move || died.cancel()));
    }
    // A call from now on must find the member. A refusal arrives through another task than the echo: after the second
    // echo it has arrived.
    connection.round_trip().await?;
    connection.round_trip().await?;
    while let Ok(refused) = denied.try_recv() {
        if spec.subjects.iter().any(|subject| connection.names.request(subject) == refused.subject) {
            return Err(refused.error());
        }
    }
    Ok(incoming)
}

/// Accepts the requests of one subject.
struct Counter {
    connection: Weak<Connection>,
    subject: Subject,
    requests: mpsc::Sender<IncomingRequest>,
    room: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    endpoint: Arc<Endpoint>,
    /// Shared by all subjects of the member: when the task of one subject fails, the member serves none.
    left: CancellationToken,
}

impl Counter {
    async fn run(self, mut requested: async_nats::Subscriber, outbound: Arc<Outbound>) {
        loop {
            let request = tokio::select! {
                biased;
                () = self.requests.closed() => break,
                () = outbound.closing() => break,
                () = self.left.cancelled() => break,
                request = requested.next() => request,
            };
            let (Some(request), Some(connection)) = (request, self.connection.upgrade()) else { break };
            self.take(&connection, request);
        }
        self.endpoint.leave();
        let Some(connection) = self.connection.upgrade() else { return };
        // Requests that the server sent before it read the UNSUB are answered, so that their callers do not wait in
        // vain. `drain()` of async-nats 0.51 forgets the subscription before the server has read the UNSUB, and drops
        // them. An UNSUB with a count beyond the server's range ends the subscription at the server at once (2.9 and
        // 2.15), and the client keeps it until it is dropped.
        if requested.unsubscribe_after(u64::MAX).await.is_err() {
            return;
        }
        let mut arrived = pin!(tokio::time::timeout(LEAVING, async {
            if connection.round_trip().await.is_ok() {
                tokio::time::sleep(LINGER).await;
            }
        }));
        loop {
            let request = tokio::select! {
                biased;
                request = requested.next() => request,
                _ = &mut arrived => break,
            };
            let Some(request) = request else { break };
            let headers = match deadline(&request) {
                Some(_) => busy(),
                None => error_headers(503, "the service has left"),
            };
            if let Some(reply) = request.reply {
                outbound.answer(reply, headers);
            }
        }
    }

    fn take(&self, connection: &Arc<Connection>, request: NatsMessage) {
        let Some(reply) = request.reply.clone() else { return };
        let deadline = deadline(&request);
        match self.room.clone().try_acquire_owned() {
            Ok(permit) => self.begin(connection, request, reply, deadline, permit),
            Err(_) if deadline.is_some() => connection.outbound.answer(reply, busy()),
            Err(_) if self.waiting.fetch_add(1, Ordering::AcqRel) < BACKLOG => {
                // A plain client does not know `busy`, so its request waits here.
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
                connection.outbound.answer(reply, error_headers(429, "the service has no room"));
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
        let within = deadline.map_or(LONGEST, bounds::left_until);
        if within.is_zero() {
            return; // the caller's own timer reports the deadline
        }
        let id = || MessageId::Text(reply.as_str().into());
        let message = codec::message(request.headers.as_ref(), request.payload, self.subject.clone(), id);
        let respond =
            Reply::new(connection, &reply, within, deadline.is_some(), self.endpoint.clone(), permit);
        let gone = respond.gone();
        let responder = Responder::new(Box::new(respond), gone, connection.max_payload);
        let incoming = IncomingRequest { message: Arc::new(message), within, responder };
        // There is a slot for every permit. A dropped receiver drops the request, and that notifies the caller.
        drop(self.requests.try_send(incoming));
    }
}

/// Returns the caller's deadline; a plain client sends none.
fn deadline(request: &NatsMessage) -> Option<Timestamp> {
    let headers = request.headers.as_ref()?;
    codec::get(headers, headers::DEADLINE).and_then(headers::time)
}

/// Returns headers that make a caller of this library try another member.
fn busy() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(headers::FRAME, BUSY);
    headers
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
            left: self.left.clone(),
        }
    }
}
