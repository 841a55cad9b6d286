//! Requests in memory: a caller waits for a member with capacity and hands the request over to it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::{Connection, closed};
use super::reply::{self, timeout};
use super::servers::{Found, Server, Slot};
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Subject;
use crate::{IncomingRequest, Replies, Requests, Responder, Serve};

/// Requests over one connection.
#[derive(Debug)]
pub(super) struct MemoryRequests {
    connection: Arc<Connection>,
}

impl MemoryRequests {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        Self { connection: connection.clone() }
    }
}

impl Requests for MemoryRequests {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            call(&self.connection, request, within).await.map_err(|error| error.during("request"))
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move { serve(&self.connection, spec).map_err(|error| error.during("serve")) })
    }
}

fn serve(connection: &Connection, spec: Serve) -> Result<mpsc::Receiver<IncomingRequest>> {
    connection.check()?;
    if spec.subjects.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a member of a service needs at least one subject")
            .with("service", spec.service));
    }
    let bus = connection.bus.clone();
    let (server, incoming) =
        Server::new(bus.next_id(), spec.max_in_flight.max(1), connection.closed.child_token());
    bus.servers.join(&spec.subjects, &server);
    tokio::spawn(async move {
        tokio::select! {
            () = server.requests.closed() => {}
            () = server.closed.cancelled() => {}
        }
        bus.servers.leave(&spec.subjects, &server);
        // Dropping the sender ends the receiver as soon as callers in `hand_over` have dropped their references too.
    });
    Ok(incoming)
}

async fn call(connection: &Connection, request: Message, within: Duration) -> Result<Replies> {
    connection.check()?;
    connection.bus.capabilities.check(&request).map_err(|error| error.with("subject", &request.subject))?;
    let request = Arc::new(request);
    let deadline = bounds::later(Instant::now(), within);
    loop {
        let slot = member(connection, &request.subject, deadline).await?;
        // A member that leaves at this moment has not started the request, so the next member gets it.
        if let Some(replies) = hand_over(connection, &request, deadline, slot)? {
            return Ok(replies);
        }
    }
}

/// Waits for a member that has capacity.
async fn member(connection: &Connection, subject: &Subject, deadline: Instant) -> Result<Slot> {
    let servers = &connection.bus.servers;
    loop {
        // The notification is enabled before the second `find`, so that capacity freed in between is not missed.
        let freed = match servers.find(subject) {
            Found::Room(slot) => return Ok(slot),
            Found::Nobody => return Err(nobody(subject)),
            Found::Busy(freed) => freed,
        };
        let mut freed = std::pin::pin!(freed.notified());
        freed.as_mut().enable();
        match servers.find(subject) {
            Found::Room(slot) => return Ok(slot),
            Found::Nobody => return Err(nobody(subject)),
            Found::Busy(_) => {}
        }
        tokio::select! {
            () = freed => {}
            () = tokio::time::sleep_until(deadline) => return Err(timeout(subject)),
            () = connection.closed.cancelled() => return Err(closed()),
        }
    }
}

/// Sends a request to a member. Returns `None` when the member has left.
fn hand_over(
    connection: &Connection,
    request: &Arc<Message>,
    deadline: Instant,
    slot: Slot,
) -> Result<Option<Replies>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(timeout(&request.subject));
    }
    let server = slot.server.clone();
    let (reply, replies, watch) =
        reply::open(slot, connection.closed.clone(), request.subject.clone(), deadline);
    let gone = reply.gone();
    let responder = Responder::new(Box::new(reply), gone, connection.bus.config.max_payload);
    let incoming = IncomingRequest { message: request.clone(), within: left, responder };
    if server.requests.try_send(incoming).is_err() {
        return Ok(None);
    }
    tokio::spawn(watch.run());
    Ok(Some(replies))
}

fn nobody(subject: &Subject) -> Error {
    Error::new(ErrorKind::NoResponder, "no responder serves this subject").with("subject", subject)
}
