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

use super::client::Client;
use super::codec;
use super::error::closed;
use super::frame::{BUSY, error_headers};
use super::micro::{Endpoint, Services};
use super::outbound::Outbound;
use super::reply::{Reply, Served};
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::MessageId;
use event_transport::subject::Subject;
use event_transport::supervise;
use event_transport::{IncomingRequest, Responder, Serve, headers};

/// Longest time for a request whose caller sends no deadline.
const LONGEST: Duration = Duration::from_secs(3600);
/// Longest wait until the server has read the UNSUB of a member that leaves.
const LEAVING: Duration = Duration::from_secs(2);
/// Wait for a request whose member the server chose before it read the UNSUB.
const LINGER: Duration = Duration::from_millis(50);
/// Largest number of requests of plain NATS clients that wait for room.
const BACKLOG: usize = 1024;

/// Serves the requests of this connection.
pub(super) struct Server {
    client: Arc<Client>,
    served: Arc<Served>,
    services: Services,
}

impl Server {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        Self { client: client.clone(), served: Served::new(client), services: Services::new(client) }
    }

    /// Joins the members that serve these subjects.
    pub(super) async fn serve(&self, spec: Serve) -> Result<mpsc::Receiver<IncomingRequest>> {
        let client = &self.client;
        if client.outbound.is_closing() {
            return Err(closed());
        }
        if spec.subjects.is_empty() {
            return Err(Error::new(ErrorKind::Config, "a member of a service needs at least one subject")
                .with("service", spec.service));
        }
        let mut denied = client.link.denied.subscribe();
        self.served.start().await?;
        let max_in_flight = spec.max_in_flight.max(1);
        let (requests, incoming) = mpsc::channel(max_in_flight);
        let member = Arc::new(ServiceMember {
            served: Arc::downgrade(&self.served),
            requests,
            room: Arc::new(Semaphore::new(max_in_flight)),
            left: CancellationToken::new(),
            subscribed: AtomicUsize::new(0),
            unsubscribed: CancellationToken::new(),
        });
        // Held until every subject is subscribed to, so that the departure of the first is not that of the last.
        let joining = Subscribed::new(&member);
        for subject in &spec.subjects {
            let requested = client.link.queue_subscribe(client.names.request(subject)).await?;
            let endpoint = self.services.enlist(&spec, subject).await;
            let counter = Counter {
                member: member.clone(),
                subject: subject.clone(),
                waiting: Arc::new(AtomicUsize::new(0)),
                endpoint,
            };
            let subscribed = Subscribed::new(&member);
            let counting = counter.run(requested, client.outbound.clone(), subscribed);
            let died = member.left.clone();
            client.tasks.spawn(supervise::run("nats serve", counting, move || died.cancel()));
        }
        drop((joining, member));
        // A call from now on must find the member. A refusal arrives through another task than the echo: after the
        // second echo it has arrived.
        client.round_trip().await?;
        client.round_trip().await?;
        while let Ok(refused) = denied.try_recv() {
            if spec.subjects.iter().any(|subject| client.names.request(subject) == refused.subject) {
                return Err(refused.error());
            }
        }
        Ok(incoming)
    }

    /// Notifies every caller that this connection no longer answers.
    pub(super) fn let_go(&self) {
        self.served.let_go();
    }
}

/// One member of a service, which all of its subjects share.
struct ServiceMember {
    served: Weak<Served>,
    requests: mpsc::Sender<IncomingRequest>,
    room: Arc<Semaphore>,
    /// When the task of one subject fails, the member serves none.
    left: CancellationToken,
    /// Number of subjects whose subscription has not ended.
    subscribed: AtomicUsize,
    /// Cancelled when the server has read the UNSUB of every subject.
    unsubscribed: CancellationToken,
}

/// A subject that a member is subscribed to. The last one that is dropped ends the departure of the member: one round
/// trip after all UNSUBs proves that the server has read them.
struct Subscribed(Arc<ServiceMember>);

impl Subscribed {
    fn new(member: &Arc<ServiceMember>) -> Self {
        member.subscribed.fetch_add(1, Ordering::AcqRel);
        Self(member.clone())
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        if self.0.subscribed.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let unsubscribed = self.0.unsubscribed.clone();
        let Some(served) = self.0.served.upgrade() else { return unsubscribed.cancel() };
        served.client.tasks.clone().spawn(async move {
            if let Ok(Ok(())) = tokio::time::timeout(LEAVING, served.client.round_trip()).await {
                tokio::time::sleep(LINGER).await;
            }
            unsubscribed.cancel();
        });
    }
}

/// Accepts the requests of one subject.
#[derive(Clone)]
struct Counter {
    member: Arc<ServiceMember>,
    subject: Subject,
    waiting: Arc<AtomicUsize>,
    endpoint: Arc<Endpoint>,
}

impl Counter {
    async fn run(
        self,
        mut requested: async_nats::Subscriber,
        outbound: Arc<Outbound>,
        subscribed: Subscribed,
    ) {
        let member = &self.member;
        loop {
            let request = tokio::select! {
                biased;
                () = member.requests.closed() => break,
                () = outbound.closing() => break,
                () = member.left.cancelled() => break,
                request = requested.next() => request,
            };
            let (Some(request), Some(served)) = (request, member.served.upgrade()) else { break };
            self.take(&served, request);
        }
        self.endpoint.leave();
        // Requests that the server sent before it read the UNSUB are answered, so that their callers do not wait in
        // vain. `drain()` of async-nats 0.51 forgets the subscription before the server has read the UNSUB, and drops
        // them. An UNSUB with a count beyond the server's range ends the subscription at the server at once (2.9 and
        // 2.15), and the client keeps it until it is dropped.
        if requested.unsubscribe_after(u64::MAX).await.is_err() {
            return;
        }
        drop(subscribed);
        let mut arrived = pin!(tokio::time::timeout(LEAVING, member.unsubscribed.cancelled()));
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

    fn take(&self, served: &Arc<Served>, request: NatsMessage) {
        let Some(reply) = request.reply.clone() else { return };
        let deadline = deadline(&request);
        match self.member.room.clone().try_acquire_owned() {
            Ok(permit) => self.begin(served, request, reply, deadline, permit),
            Err(_) if deadline.is_some() => served.client.outbound.answer(reply, busy()),
            Err(_) if self.waiting.fetch_add(1, Ordering::AcqRel) < BACKLOG => {
                // A plain client does not know `busy`, so its request waits here.
                let (served, counter) = (served.clone(), self.clone());
                tokio::spawn(async move {
                    let permit =
                        tokio::time::timeout(LONGEST, counter.member.room.clone().acquire_owned()).await;
                    counter.waiting.fetch_sub(1, Ordering::AcqRel);
                    if let Ok(Ok(permit)) = permit {
                        counter.begin(&served, request, reply, None, permit);
                    }
                });
            }
            Err(_) => {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                served.client.outbound.answer(reply, error_headers(429, "the service has no room"));
            }
        }
    }

    fn begin(
        &self,
        served: &Arc<Served>,
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
        let respond = Reply::new(served, &reply, within, deadline.is_some(), self.endpoint.clone(), permit);
        let gone = respond.gone();
        let responder = Responder::new(Box::new(respond), gone, served.client.server.max_payload);
        let incoming = IncomingRequest { message: Arc::new(message), within, responder };
        // There is a slot for every permit. A dropped receiver drops the request, and that notifies the caller.
        drop(self.member.requests.try_send(incoming));
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
