//! Calls: queues each request in its subject's list, and passes the frames of the answer to the caller.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use redis::{Pipeline, Value};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::client::Client;
use super::error::closed;
use super::frame::{self, Packet, WINDOW};
use super::scripts;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::message::Message;
use event_transport::subject::Subject;
use event_transport::sync::lock;
use event_transport::{Frame, Replies};

/// A caller checks its request when it received nothing for this time: longer than [`LIFE`](frame::LIFE), so that a
/// dead server does not count as a responder by then.
const SUSPICION: Duration = Duration::from_millis(10_500);

/// The calls of this bus.
pub(super) struct Calls {
    client: Arc<Client>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
    running: TaskTracker,
}

/// Calls that wait for frames.
#[derive(Default)]
struct Waiting(Mutex<HashMap<u64, mpsc::UnboundedSender<Packet>>>);

impl Calls {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, waiting: Arc::default(), next: AtomicU64::new(0), running: TaskTracker::new() }
    }

    /// Passes a packet to the call to which it belongs.
    pub(super) fn on_message(&self, packet: Packet) {
        let Some(number) = packet.get(frame::REQUEST).and_then(|number| number.parse().ok()) else { return };
        if let Some(call) = lock(&self.waiting.0).get(&number) {
            let _ = call.send(packet);
        }
    }

    /// Waits until every call has reported to its caller that the bus closes.
    pub(super) async fn close(&self) {
        self.running.close();
        let _ = tokio::time::timeout(self.client.config.publish_timeout, self.running.wait()).await;
    }

    pub(super) async fn call(&self, request: Message, within: Duration) -> Result<Replies> {
        let client = &self.client;
        let start = Instant::now();
        let within = bounds::bounded(within);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let inbox = client.keys.inbox(&client.id);
        let deadline = Timestamp::now().as_millisecond().saturating_add(bounds::signed_millis(within));
        let bytes = frame::request(&request, number, &inbox, deadline);
        let (sender, incoming) = mpsc::unbounded_channel();
        lock(&self.waiting.0).insert(number, sender);
        // Removed wherever this future is dropped.
        let place = Place { waiting: self.waiting.clone(), number };
        let subject = request.subject;
        let mut command =
            scripts::CALL.on(&[&client.keys.queue(subject.as_str()), &client.keys.servers(subject.as_str())]);
        command.arg(&bytes[..]).arg(bounds::millis(within).max(1));
        let queued = match tokio::time::timeout(within, client.connection.ask(command)).await {
            Ok(answer) => answer?,
            Err(_) => return Err(timeout(&subject)),
        };
        if queued != Value::Int(1) {
            return Err(Error::new(ErrorKind::NoResponder, "no responder serves this subject")
                .with("subject", subject));
        }
        // One slot more than frames may use, so that an error always fits.
        let (frames, replies) = mpsc::channel(WINDOW + 1);
        let gone = CancellationToken::new();
        let call = Call {
            client: client.clone(),
            place,
            subject,
            request: bytes,
            deadline: start + within,
            incoming,
            frames,
            gone: gone.clone(),
            taken: false,
            server: None,
            unpaid: 0,
            heard: start,
        };
        self.running.spawn(call.run());
        Ok(Replies::new(replies, Some(gone)))
    }
}

/// One call in progress.
struct Call {
    client: Arc<Client>,
    place: Place,
    subject: Subject,
    /// The bytes of the request in the queue, which identify it there.
    request: Bytes,
    deadline: Instant,
    incoming: mpsc::UnboundedReceiver<Packet>,
    frames: mpsc::Sender<Result<Frame>>,
    gone: CancellationToken,
    /// A server has taken the request.
    taken: bool,
    /// The channel on which the server receives credit.
    server: Option<String>,
    unpaid: usize,
    heard: Instant,
}

/// The registration of a call that waits for frames; dropping it removes the call.
struct Place {
    waiting: Arc<Waiting>,
    number: u64,
}

impl Place {
    /// Ends the registration: no more frames are expected.
    fn leave(&self) {
        lock(&self.waiting.0).remove(&self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

fn timeout(subject: &Subject) -> Error {
    Error::new(ErrorKind::Timeout, "no answer within the deadline").with("subject", subject)
}

/// The next event of a call.
enum Next {
    Frame(Packet),
    Ask,
    End(Option<Error>),
}

impl Call {
    async fn run(mut self) {
        loop {
            let suspicion = self.heard + SUSPICION;
            let next = tokio::select! {
                biased;
                Some(packet) = self.incoming.recv() => Next::Frame(packet),
                () = self.gone.cancelled() => Next::End(None),
                () = self.client.closing.cancelled() => Next::End(Some(closed())),
                () = tokio::time::sleep_until(self.deadline) => Next::End(Some(timeout(&self.subject))),
                () = tokio::time::sleep_until(suspicion) => Next::Ask,
            };
            let end = match next {
                Next::Frame(packet) => match self.take(packet).await {
                    Some(ended) => ended,
                    None => continue,
                },
                Next::Ask => match self.ask().await {
                    Some(error) => Some(error),
                    None => continue,
                },
                Next::End(error) => error,
            };
            self.end(end).await;
            return;
        }
    }

    /// Passes a frame to the caller; `Some` when it was the last one.
    async fn take(&mut self, packet: Packet) -> Option<Option<Error>> {
        self.heard = Instant::now();
        self.taken = true;
        if let Some(from) = packet.get(frame::FROM) {
            self.server = Some(from.to_owned());
        }
        match packet.get(headers::FRAME) {
            Some("working") => None,
            Some("abandoned") => {
                let text = "the server dropped the request without an answer";
                self.send(Err(Error::new(ErrorKind::Unavailable, text).with("subject", &self.subject))).await;
                self.gone.cancel();
                // No server is left that could be notified.
                self.place.leave();
                self.taken = false;
                self.request = Bytes::new();
                Some(None)
            }
            word => {
                let last = word != Some("more");
                self.send(Ok(packet.frame(last))).await;
                if last {
                    self.request = Bytes::new();
                    return Some(None);
                }
                self.unpaid += 1;
                if self.unpaid >= WINDOW / 2 {
                    self.pay().await;
                }
                None
            }
        }
    }

    async fn send(&self, frame: Result<Frame>) {
        tokio::select! {
            // Reserves two slots, so that one is left for an error.
            room = self.frames.reserve_many(2) => if let Ok(mut room) = room && let Some(room) = room.next() {
                room.send(frame.map_err(|error| error.during("request")));
            },
            () = self.gone.cancelled() => {}
            () = self.client.closing.cancelled() => {}
            () = tokio::time::sleep_until(self.deadline) => {}
        }
    }

    /// Grants credit: the server may send as many further frames as the caller has taken.
    async fn pay(&mut self) {
        let Some(server) = &self.server else { return };
        let mut writer = frame::Writer::default();
        writer.header(headers::REPLY_TO, self.client.keys.inbox(&self.client.id));
        writer.header(frame::REQUEST, self.place.number.to_string());
        let credit = writer.header(frame::CREDIT, self.unpaid.to_string()).finish(b"");
        self.unpaid = 0;
        let mut command = redis::cmd("PUBLISH");
        command.arg(server).arg(&credit[..]);
        let _ = self.client.connection.ask(command).await;
    }

    /// Runs after a long time without a message: checks whether the request is still queued or its server has died.
    async fn ask(&mut self) -> Option<Error> {
        self.heard = Instant::now();
        let keys = &self.client.keys;
        let mut command =
            scripts::QUEUED.on(&[&keys.queue(self.subject.as_str()), &keys.servers(self.subject.as_str())]);
        command.arg(&self.request[..]);
        match self.client.connection.ask(command).await {
            Ok(Value::Int(0)) => {
                self.request = Bytes::new();
                let text = "the server stopped before it answered";
                Some(Error::new(ErrorKind::Unavailable, text).with("subject", &self.subject))
            }
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::Closed => Some(error),
            // The deadline still ends the call.
            Err(_) => None,
        }
    }

    /// Reports the error to the caller, and to the server that the caller no longer waits.
    async fn end(&mut self, error: Option<Error>) {
        if let Some(error) = error {
            let _ = self.frames.try_send(Err(error.during("request")));
        }
        self.gone.cancel();
        if self.request.is_empty() {
            return;
        }
        let keys = &self.client.keys;
        let mut pipeline = Pipeline::new();
        if !self.taken {
            pipeline.cmd("LREM").arg(keys.queue(self.subject.as_str())).arg(1).arg(&self.request[..]);
        }
        let mut writer = frame::Writer::default();
        writer.header(headers::REPLY_TO, keys.inbox(&self.client.id));
        let cancel = writer.header(frame::REQUEST, self.place.number.to_string()).finish(b"");
        pipeline.cmd("PUBLISH").arg(keys.cancels(self.subject.as_str()).as_str()).arg(&cancel[..]);
        let _ = self.client.connection.run(&pipeline).await;
    }
}
