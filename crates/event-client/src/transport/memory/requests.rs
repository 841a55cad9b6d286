//! Requests and replies in memory: members of a subject in turn, `max_in_flight`, deadlines, and frames in order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::MemoryTransport;
use super::connection::{Connection, closed};
use super::publish::check_size;
use crate::bounds;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Subject;
use crate::transport::{Frame, IncomingRequest, Replies, Requests, Respond, Responder, Serve};

/// Largest number of frames of one answer that are buffered for the caller.
const FRAMES: usize = 64;

/// The members that serve each subject.
#[derive(Debug, Default)]
pub(super) struct Rpc(Mutex<HashMap<Subject, Pool>>);

#[derive(Debug, Default)]
struct Pool {
    members: Vec<Arc<Server>>,
    /// Index of the member whose turn it is.
    next: usize,
    /// Wakes a caller when a member has capacity again, and all callers when a member joins or leaves.
    freed: Arc<Notify>,
}

/// One member of a service.
#[derive(Debug)]
struct Server {
    id: u64,
    requests: mpsc::Sender<IncomingRequest>,
    max_in_flight: Arc<Semaphore>,
    closed: CancellationToken,
    /// Notified when this member has capacity: one entry for each subject.
    freed: Mutex<Vec<Arc<Notify>>>,
}

/// Result of the search for a member that has capacity.
enum Found {
    Room(Arc<Server>, OwnedSemaphorePermit),
    Busy(Arc<Notify>),
    Nobody,
}

impl Rpc {
    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Pool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, subjects: &[Subject], server: &Arc<Server>) {
        let mut pools = self.lock();
        let mut freed = server.freed.lock().unwrap_or_else(PoisonError::into_inner);
        for subject in subjects {
            let pool = pools.entry(subject.clone()).or_default();
            pool.members.push(server.clone());
            pool.freed.notify_waiters();
            freed.push(pool.freed.clone());
        }
    }

    fn leave(&self, subjects: &[Subject], id: u64) {
        let mut pools = self.lock();
        for subject in subjects {
            let Some(pool) = pools.get_mut(subject) else { continue };
            pool.members.retain(|member| member.id != id);
            pool.freed.notify_waiters(); // callers that wait must find out when the last member has left
            if pool.members.is_empty() {
                pools.remove(subject);
            }
        }
    }

    /// Returns the next member in turn that has capacity.
    fn find(&self, subject: &Subject) -> Found {
        let mut pools = self.lock();
        let Some(pool) = pools.get_mut(subject) else { return Found::Nobody };
        // A member whose receiver was dropped is about to leave.
        if pool.members.iter().all(|member| member.requests.is_closed()) {
            return Found::Nobody;
        }
        for step in 0..pool.members.len() {
            let at = (pool.next + step) % pool.members.len();
            let member = &pool.members[at];
            if member.requests.is_closed() {
                continue;
            }
            if let Ok(permit) = member.max_in_flight.clone().try_acquire_owned() {
                let member = member.clone();
                pool.next = at + 1;
                return Found::Room(member, permit);
            }
        }
        Found::Busy(pool.freed.clone())
    }
}

impl Server {
    fn has_room(&self) {
        for freed in self.freed.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            freed.notify_one();
        }
    }
}

impl Requests for MemoryTransport {
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
    let max_in_flight = spec.max_in_flight.max(1);
    let (requests, incoming) = mpsc::channel(max_in_flight);
    let server = Arc::new(Server {
        id: connection.bus.next_id(),
        requests,
        max_in_flight: Arc::new(Semaphore::new(max_in_flight)),
        closed: connection.closed.child_token(),
        freed: Mutex::default(),
    });
    let bus = connection.bus.clone();
    bus.calls.join(&spec.subjects, &server);
    tokio::spawn(async move {
        tokio::select! {
            () = server.requests.closed() => {}
            () = server.closed.cancelled() => {}
        }
        bus.calls.leave(&spec.subjects, server.id);
        // Dropping the sender ends the receiver as soon as callers in `hand_over` have dropped their references too.
    });
    Ok(incoming)
}

async fn call(connection: &Arc<Connection>, request: Message, within: Duration) -> Result<Replies> {
    connection.check()?;
    let config = &connection.bus.config;
    crate::transport::headers::check(&request)?;
    check_size(&request, config)?;
    let request = Arc::new(request);
    let deadline = bounds::later(Instant::now(), within);
    loop {
        let (server, permit) = member(connection, &request.subject, deadline).await?;
        // A member that leaves at this moment has not started the request, so the next member gets it.
        if let Some(replies) = hand_over(connection, &request, deadline, server, permit)? {
            return Ok(replies);
        }
    }
}

/// Waits for a member that has capacity.
async fn member(
    connection: &Connection,
    subject: &Subject,
    deadline: Instant,
) -> Result<(Arc<Server>, OwnedSemaphorePermit)> {
    loop {
        // The notification is enabled before the second `find`, so that capacity freed in between is not missed.
        let freed = match connection.bus.calls.find(subject) {
            Found::Room(server, permit) => return Ok((server, permit)),
            Found::Nobody => return Err(nobody(subject)),
            Found::Busy(freed) => freed,
        };
        let mut freed = std::pin::pin!(freed.notified());
        freed.as_mut().enable();
        match connection.bus.calls.find(subject) {
            Found::Room(server, permit) => return Ok((server, permit)),
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
    server: Arc<Server>,
    permit: OwnedSemaphorePermit,
) -> Result<Option<Replies>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        drop(permit);
        server.has_room();
        return Err(timeout(&request.subject));
    }
    // One slot more than frames may use, so that an error always fits.
    let (frames, replies) = mpsc::channel(FRAMES + 1);
    let (parked, waiting) = mpsc::channel(1);
    let gone = CancellationToken::new();
    let busy = Arc::new(AtomicBool::new(false));
    let respond = Reply {
        frames: frames.clone(),
        parked,
        busy: busy.clone(),
        gone: gone.clone(),
        _slot: Slot { permit: Some(permit), server: server.clone() },
    };
    let watch = Watch {
        frames,
        waiting,
        busy,
        deadline,
        gone: gone.clone(),
        caller: connection.closed.clone(),
        server: server.closed.clone(),
        subject: request.subject.clone(),
    };
    let responder = Responder::new(Box::new(respond), gone.clone(), connection.bus.config.max_payload);
    let incoming = IncomingRequest { message: request.clone(), within: left, responder };
    if server.requests.try_send(incoming).is_err() {
        return Ok(None);
    }
    tokio::spawn(watch.run());
    Ok(Some(Replies::new(replies, Some(gone))))
}

fn nobody(subject: &Subject) -> Error {
    Error::new(ErrorKind::NoResponder, "no responder serves this subject").with("subject", subject)
}

fn timeout(subject: &Subject) -> Error {
    Error::new(ErrorKind::Timeout, "no answer within the deadline").with("subject", subject)
}

/// One unit of a member's `max_in_flight`, returned on drop.
struct Slot {
    permit: Option<OwnedSemaphorePermit>,
    server: Arc<Server>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.server.has_room();
    }
}

/// The responder's side of one answer.
struct Reply {
    frames: mpsc::Sender<Result<Frame>>,
    /// A frame for which `frames` had no room.
    parked: mpsc::Sender<(Result<Frame>, Option<Answer<()>>)>,
    /// A frame is parked, and no other frame may overtake it.
    busy: Arc<AtomicBool>,
    gone: CancellationToken,
    _slot: Slot,
}

impl Respond for Reply {
    fn send(&mut self, frame: Frame) -> Confirm<()> {
        if self.gone.is_cancelled() || self.frames.is_closed() {
            let error = Error::new(ErrorKind::Closed, "the caller no longer waits for this answer");
            return Confirm::ready(Err(error.during("reply")));
        }
        let parked = self.busy.load(Ordering::Acquire);
        if !parked && self.frames.capacity() > 1 && self.frames.try_send(Ok(frame.clone())).is_ok() {
            return Confirm::ready(Ok(()));
        }
        let (answer, confirm) = Confirm::channel();
        if !parked {
            self.busy.store(true, Ordering::Release);
            if self.parked.try_send((Ok(frame), Some(answer))).is_ok() {
                return confirm;
            }
        }
        let error = Error::new(
            ErrorKind::Full,
            "the caller reads slower than frames are sent; await each confirmation before the next frame",
        );
        Confirm::ready(Err(error.during("reply")))
    }

    fn abandoned(&mut self) {
        let error = Error::new(ErrorKind::Unavailable, "the server dropped the request without an answer");
        let _ = self.parked.try_send((Err(error.during("request")), None));
    }
}

/// Supervises one call until it ends: forwards parked frames, and reports a deadline or a closed connection.
struct Watch {
    frames: mpsc::Sender<Result<Frame>>,
    waiting: mpsc::Receiver<(Result<Frame>, Option<Answer<()>>)>,
    busy: Arc<AtomicBool>,
    deadline: Instant,
    gone: CancellationToken,
    caller: CancellationToken,
    server: CancellationToken,
    subject: Subject,
}

impl Watch {
    async fn run(mut self) {
        let error = tokio::select! {
            biased;
            () = self.gone.cancelled() => return,
            () = pump(&mut self.waiting, &self.frames, &self.busy) => return,
            () = self.caller.cancelled() => closed(),
            () = self.server.cancelled() => Error::new(ErrorKind::Unavailable, "the server closed before it answered"),
            () = tokio::time::sleep_until(self.deadline) => timeout(&self.subject),
        };
        let _ = self.frames.try_send(Err(error.during("request")));
        self.gone.cancel();
    }
}

/// Moves parked frames to the caller as it makes room. Ends when the answer has ended or the caller has dropped it.
async fn pump(
    waiting: &mut mpsc::Receiver<(Result<Frame>, Option<Answer<()>>)>,
    frames: &mpsc::Sender<Result<Frame>>,
    busy: &AtomicBool,
) {
    while let Some((frame, answer)) = waiting.recv().await {
        // Two slots, so that one stays free for an error.
        let Ok(mut room) = frames.reserve_many(2).await else { return };
        if let Some(room) = room.next() {
            room.send(frame);
        }
        drop(room);
        busy.store(false, Ordering::Release);
        if let Some(answer) = answer {
            let _ = answer.send(Ok(()));
        }
    }
}
