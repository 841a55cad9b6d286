//! Answers requests: sends frames while the caller has room, processes messages of callers, and watches deadlines.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{HeaderMap, Message as NatsMessage, Subject as NatsSubject};
use bytes::Bytes;
use futures_util::StreamExt;
use smol_str::SmolStr;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::codec;
use super::frame::{FRAMES, GONE, HELD, error_headers, failure, frame_headers};
use super::micro::Endpoint;
use event_transport::bounds;
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::sync::lock;
use event_transport::{Frame, Respond, headers};

/// After this time a caller is notified that its request is being processed.
const HOLD: Duration = Duration::from_millis(100);

/// Requests in progress at this connection.
pub(super) struct Served {
    pub(super) client: Arc<Client>,
    /// By their reply subject.
    calls: Mutex<HashMap<SmolStr, Arc<OpenRequest>>>,
    /// Notified when there is a request to watch again.
    grown: Notify,
    started: OnceCell<()>,
}

/// One request that is being answered.
struct OpenRequest {
    reply: NatsSubject,
    gone: CancellationToken,
    deadline: Instant,
    since: Instant,
    /// The caller uses this library: it supports frames, `room` messages and status requests.
    ours: bool,
    flow: Mutex<Flow>,
}

/// The number of frames that may still be sent, and the frames that wait.
struct Flow {
    room: usize,
    parked: VecDeque<(OutboundMessage, bool, Option<Answer<()>>)>,
    told: bool,
}

impl OpenRequest {
    fn flow(&self) -> MutexGuard<'_, Flow> {
        lock(&self.flow)
    }
}

/// The responder's side of one answer.
pub(super) struct Reply {
    served: Arc<Served>,
    held: Arc<OpenRequest>,
    endpoint: Arc<Endpoint>,
    _permit: OwnedSemaphorePermit,
}

impl Reply {
    /// Creates an answer that is due `within` this time. `ours` tells whether the caller uses this library.
    pub(super) fn new(
        served: &Arc<Served>,
        reply: &NatsSubject,
        within: Duration,
        ours: bool,
        endpoint: Arc<Endpoint>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let now = Instant::now();
        let held = Arc::new(OpenRequest {
            reply: reply.clone(),
            gone: CancellationToken::new(),
            deadline: bounds::later(now, within),
            since: now,
            ours,
            flow: Mutex::new(Flow { room: FRAMES, parked: VecDeque::new(), told: false }),
        });
        served.lock().insert(reply.as_str().into(), held.clone());
        served.grown.notify_one();
        Self { served: served.clone(), held, endpoint, _permit: permit }
    }

    /// Returns a token that is cancelled when the caller no longer waits.
    pub(super) fn gone(&self) -> CancellationToken {
        self.held.gone.clone()
    }
}

impl Respond for Reply {
    fn send(&mut self, mut frame: Frame) -> Confirm<()> {
        let refuse = |error: Error| Confirm::ready(Err(error.during("reply")));
        if self.held.gone.is_cancelled() {
            return refuse(Error::new(ErrorKind::Closed, "the caller no longer waits for this answer"));
        }
        let mut headers = frame_headers(&mut frame);
        let bytes = frame.payload.len() + codec::wire_len(&headers);
        if bytes > self.served.client.server.max_wire {
            return refuse(
                Error::new(ErrorKind::TooLarge, "the frame is larger than the server takes")
                    .with("bytes", bytes)
                    .with("limit", self.served.client.server.max_wire),
            );
        }
        let failed = failure(&frame, &mut headers);
        if !frame.last {
            headers.insert(headers::REPLY_TO, self.served.address());
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
            self.served.client.outbound.send(letter);
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
        headers.insert(headers::FRAME, GONE);
        self.served.client.outbound.answer(self.held.reply.clone(), headers);
        self.finish(Some("the server let go of the request without an answer".into()));
    }
}

impl Reply {
    fn finish(&self, failed: Option<SmolStr>) {
        self.served.lock().remove(self.held.reply.as_str());
        self.endpoint.count(self.held.since.elapsed(), failed);
    }
}

impl Served {
    pub(super) fn new(client: &Arc<Client>) -> Arc<Self> {
        Arc::new(Self {
            client: client.clone(),
            calls: Mutex::default(),
            grown: Notify::new(),
            started: OnceCell::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SmolStr, Arc<OpenRequest>>> {
        lock(&self.calls)
    }

    /// Returns the subject on which callers reach this connection.
    fn address(&self) -> String {
        self.client.names.calls(&self.client.id)
    }

    /// Subscribes to messages of callers that leave, request a status or have room again, and watches deadlines.
    pub(super) async fn start(self: &Arc<Self>) -> Result<()> {
        self.started
            .get_or_try_init(|| async {
                let client = &self.client;
                for to in [client.id.as_str(), "all"] {
                    let mut words = client.subscribe(client.names.calls(to)).await?;
                    let (served, closed) = (Arc::downgrade(self), client.closed.clone());
                    client.vital("nats callers", async move {
                        loop {
                            let word = tokio::select! { word = words.next() => word, () = closed.cancelled() => None };
                            let (Some(word), Some(served)) = (word, served.upgrade()) else { return };
                            served.on_message(&word);
                        }
                    });
                }
                let (served, closed) = (Arc::downgrade(self), client.closed.clone());
                client.vital("nats call deadlines", async move {
                    loop {
                        let pause = match served.upgrade() {
                            Some(served) => served.watch(),
                            None => return,
                        };
                        let wait = async {
                            match (pause, served.upgrade()) {
                                (true, _) => tokio::time::sleep(HOLD / 4).await,
                                (false, Some(served)) => served.grown.notified().await,
                                (false, None) => {}
                            }
                        };
                        tokio::select! { () = wait => {}, () = closed.cancelled() => return }
                    }
                });
                Ok(())
            })
            .await
            .map(drop)
    }

    fn on_message(&self, word: &NatsMessage) {
        let text = std::str::from_utf8(&word.payload).unwrap_or_default();
        let Some((what, call)) = text.split_once(' ') else { return };
        let held = self.lock().get(call).cloned();
        match (what, held) {
            ("gone", Some(held)) => held.gone.cancel(),
            ("room", Some(held)) => self.make_room(&held),
            ("ask", held) => {
                if let Some(reply) = word.reply.clone() {
                    let answer: &'static [u8] = if held.is_some() { b"yes" } else { b"no" };
                    self.client.outbound.send_bare(reply, None, Bytes::from_static(answer));
                }
            }
            _ => {}
        }
    }

    fn make_room(&self, held: &Arc<OpenRequest>) {
        let mut flow = held.flow();
        flow.room = (flow.room + FRAMES / 2).min(FRAMES);
        let mut ended = false;
        while (flow.room > 0 || ended)
            && let Some((letter, last, answer)) = flow.parked.pop_front()
        {
            flow.room = flow.room.saturating_sub(1);
            ended |= last;
            self.client.outbound.send(letter);
            if let Some(answer) = answer {
                let _ = answer.send(Ok(()));
            }
        }
        drop(flow);
        if ended {
            self.lock().remove(held.reply.as_str());
        }
    }

    /// Notifies waiting callers that their requests are held, and cancels late requests. Returns whether any are
    /// open.
    fn watch(&self) -> bool {
        let now = Instant::now();
        let calls: Vec<_> = self.lock().values().cloned().collect();
        for held in &calls {
            if now >= held.deadline {
                held.gone.cancel();
            }
            let mut flow = held.flow();
            if held.ours && !flow.told && now >= held.since + HOLD {
                flow.told = true;
                let mut headers = HeaderMap::new();
                headers.insert(headers::FRAME, HELD);
                headers.insert(headers::REPLY_TO, self.address());
                self.client.outbound.answer(held.reply.clone(), headers);
            }
        }
        !calls.is_empty()
    }

    /// Notifies every caller that this connection no longer answers.
    pub(super) fn let_go(&self) {
        let calls: Vec<_> = self.lock().drain().map(|(_, held)| held).collect();
        for held in calls {
            let mut headers = error_headers(503, "the server closed before it answered");
            headers.insert(headers::FRAME, GONE);
            self.client.outbound.answer(held.reply.clone(), headers);
            held.gone.cancel();
        }
    }
}
