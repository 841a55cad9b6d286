//! Serves requests: a member takes requests from its subjects' lists, no more than it has room for, and answers over
//! channels.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use redis::{Pipeline, Value};
use smol_str::{SmolStr, format_smolstr};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::blocking::{LONGEST, Reader};
use super::client::Client;
use super::codec::parts;
use super::connection::RETRY;
use super::frame::{self, BEAT, LIFE, Packet};
use super::in_progress::InProgress;
use super::pubsub::Listening;
use super::reply::{Answers, Reply, ReplySender};
use super::scripts;
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::subject::Subject;
use event_transport::supervise;
use event_transport::sync::lock;
use event_transport::{IncomingRequest, Responder, Serve};

/// Maximum number of requests taken at once.
const BATCH: usize = 8;

/// The members of services that this bus has started.
pub(super) struct Services {
    client: Arc<Client>,
    sender: Arc<ReplySender>,
    members: Mutex<Vec<Weak<Service>>>,
}

/// One member of a service.
struct Service {
    client: Arc<Client>,
    name: SmolStr,
    subjects: Vec<Subject>,
    requests: mpsc::Sender<IncomingRequest>,
    max_in_flight: Arc<Semaphore>,
    answers: Arc<Answers>,
    closed: CancellationToken,
    /// Cancelled when every caller has been notified.
    ended: CancellationToken,
    wake: Notify,
}

impl Services {
    pub(super) fn new(client: Arc<Client>) -> Self {
        let sender = ReplySender::open(client.connection.clone());
        Self { client, sender, members: Mutex::default() }
    }

    pub(super) async fn serve(&self, spec: Serve) -> Result<mpsc::Receiver<IncomingRequest>> {
        if spec.subjects.is_empty() {
            return Err(Error::new(ErrorKind::Config, "a member of a service needs at least one subject")
                .with("service", spec.service));
        }
        let client = &self.client;
        let max_in_flight = spec.max_in_flight.max(1);
        let (requests, incoming) = mpsc::channel(max_in_flight);
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let service = Arc::new(Service {
            name: format_smolstr!("{}-{}-{number}", spec.service, client.id),
            client: client.clone(),
            subjects: spec.subjects,
            requests,
            max_in_flight: Arc::new(Semaphore::new(max_in_flight)),
            answers: Arc::new(Answers {
                requests: InProgress::default(),
                sender: self.sender.clone(),
                inbox: client.keys.inbox(&client.id),
            }),
            closed: CancellationToken::new(),
            ended: CancellationToken::new(),
            wake: Notify::new(),
        });
        let mut listening = Vec::new();
        for subject in &service.subjects {
            let told = Arc::downgrade(&service);
            let on = client.subscriber.on(client.keys.cancels(subject.as_str()), move |message| {
                let packet = Packet::read(Bytes::copy_from_slice(message));
                if let (Some(service), Some(key)) = (told.upgrade(), InProgress::key(&packet)) {
                    service.answers.requests.cancel(&key);
                }
            });
            listening.push(on.await?);
        }
        let reader = Reader::open(&client.connection).await?;
        service.beat().await?;
        {
            let mut members = lock(&self.members);
            members.retain(|service| service.strong_count() > 0);
            members.push(Arc::downgrade(&service));
        }
        let (closed, ended) = (service.closed.clone(), service.ended.clone());
        let serving = run(service, reader, listening);
        tokio::spawn(supervise::run("redis serve", serving, move || {
            closed.cancel();
            ended.cancel();
        }));
        Ok(incoming)
    }

    /// Grants further frames to one of the answers of this bus.
    pub(super) fn grant(&self, packet: &Packet) {
        let Some(key) = InProgress::key(packet) else { return };
        let frames = packet.get(frame::CREDIT).and_then(|frames| frames.parse().ok()).unwrap_or(0);
        for service in self.living() {
            service.answers.requests.grant(&key, frames);
        }
    }

    /// Ends all members because the bus closes: waits until every caller has been notified.
    pub(super) async fn close(&self) {
        for service in self.living() {
            service.close();
            let patience = self.client.config.publish_timeout;
            let _ = tokio::time::timeout(patience, service.ended.cancelled()).await;
        }
    }

    fn living(&self) -> Vec<Arc<Service>> {
        lock(&self.members).iter().filter_map(Weak::upgrade).collect()
    }
}

async fn run(service: Arc<Service>, reader: Reader, listening: Vec<Listening>) {
    // Both tasks end with this one, however it ends: they hold the sender of the requests, whose receiver must see the
    // end.
    let died = service.clone();
    let beats = supervise::run("redis serve beat", beat(service.clone()), move || died.close());
    let _beating = AbortOnDropHandle::new(tokio::spawn(beats));
    let mut reader = Some(reader);
    let mut turn = 0;
    let mut backoff = RETRY;
    let told = service.clone();
    let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::select! {
            () = told.requests.closed() => {}
            () = told.closed.cancelled() => {}
            () = told.client.closing.cancelled() => {}
        }
        told.closed.cancel();
        told.wake.notify_one();
    }));
    while !service.closed.is_cancelled() {
        let mut room = tokio::select! {
            permit = service.max_in_flight.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = service.closed.cancelled() => break,
        };
        // Takes more than one only where they are already queued, and only a few, so that other members get requests,
        // too.
        let more = service.max_in_flight.available_permits().min(BATCH - 1);
        if let Ok(permits) = service.max_in_flight.clone().try_acquire_many_owned(more as u32) {
            room.merge(permits);
        }
        let taken = match &mut reader {
            Some(reader) => service.take(reader, turn, room.num_permits()).await,
            None => match Reader::open(&service.client.connection).await {
                Ok(opened) => {
                    reader = Some(opened);
                    continue;
                }
                Err(error) => Err(error),
            },
        };
        turn += 1;
        match taken {
            Ok(Some((subject, requests))) => {
                backoff = RETRY;
                if service.closed.is_cancelled() {
                    service.put_back(&subject, &requests).await;
                    break;
                }
                for (bytes, permit) in requests.into_iter().zip(std::iter::from_fn(|| room.split(1))) {
                    service.begin(&subject, bytes, permit);
                }
            }
            Ok(None) => backoff = RETRY,
            Err(error) => {
                tracing::debug!(%error, "cannot take requests; trying again");
                reader = None;
                tokio::select! {
                    () = backoff.pause() => {}
                    () = service.closed.cancelled() => {}
                }
            }
        }
    }
    service.leave().await;
    if service.client.closing.is_cancelled() {
        service.abandon_all().await;
    } else {
        // Requests in progress may still be answered.
        let empty = || service.answers.requests.is_empty();
        while !empty() && !service.client.closing.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
                () = service.client.closing.cancelled() => {}
            }
        }
        service.abandon_all().await;
    }
    service.ended.cancel();
    drop(listening);
}

/// Reports periodically that this member is alive, and to callers that wait long that their requests are in progress.
async fn beat(service: Arc<Service>) {
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    beat.tick().await;
    loop {
        beat.tick().await;
        if !service.closed.is_cancelled()
            && let Err(error) = service.beat().await
        {
            tracing::debug!(%error, "cannot report that this server is alive");
        }
        service.notify(service.answers.requests.working()).await;
    }
}

impl Service {
    /// Ends the member when the bus closes.
    fn close(&self) {
        self.closed.cancel();
        self.wake.notify_one();
    }

    async fn beat(&self) -> Result<()> {
        let mut pipeline = Pipeline::new();
        for subject in &self.subjects {
            let mut command = scripts::BEAT.on(&[&self.client.keys.servers(subject.as_str())]);
            command.arg(self.name.as_str()).arg(bounds::millis(LIFE));
            pipeline.add_command(command);
        }
        self.client.connection.ask_all(&pipeline).await.map(drop)
    }

    /// Takes no more requests. Callers whose requests are queued and have no other server are notified.
    async fn leave(&self) {
        let mut notices = Pipeline::new();
        for subject in self.subjects.iter().map(Subject::as_str) {
            let keys = &self.client.keys;
            let mut command = scripts::UNSERVE.on(&[&keys.queue(subject), &keys.servers(subject)]);
            command.arg(self.name.as_str());
            let Ok(queued) = self.client.connection.ask(command).await else { continue };
            for request in parts(queued) {
                let Value::BulkString(bytes) = request else { continue };
                if let Some((caller, request)) = InProgress::key(&Packet::read(Bytes::from(bytes))) {
                    let notice = frame::notice("abandoned", &request);
                    notices.cmd("PUBLISH").arg(caller.as_str()).arg(&notice[..]);
                }
            }
        }
        self.notify(notices).await;
    }

    /// Takes the next requests of any one subject, at most `most`; subjects take turns at being first.
    async fn take(
        &self,
        reader: &mut Reader,
        turn: usize,
        most: usize,
    ) -> Result<Option<(Subject, Vec<Bytes>)>> {
        let block = reader.patience(LONGEST);
        let count = self.subjects.len();
        let mut command = redis::cmd("BLMPOP");
        command.arg(block.as_secs_f64()).arg(count);
        for at in 0..count {
            command.arg(self.client.keys.queue(self.subjects[(turn + at) % count].as_str()));
        }
        command.arg("LEFT").arg("COUNT").arg(most);
        let mut answer = parts(reader.wait(&command, block, &self.wake).await?).into_iter();
        let (Some(Value::BulkString(key)), Some(requests)) = (answer.next(), answer.next()) else {
            return Ok(None);
        };
        let subject =
            self.subjects.iter().find(|subject| self.client.keys.queue(subject.as_str()).as_bytes() == key);
        let bytes = |value| match value {
            Value::BulkString(bytes) => Some(Bytes::from(bytes)),
            _ => None,
        };
        Ok(subject.map(|subject| (subject.clone(), parts(requests).into_iter().filter_map(bytes).collect())))
    }

    /// Puts back requests that were popped while leaving, so that another member takes them.
    async fn put_back(&self, subject: &Subject, requests: &[Bytes]) {
        let queue = self.client.keys.queue(subject.as_str());
        let mut pipeline = Pipeline::new();
        pipeline.cmd("LPUSH").arg(&queue);
        for bytes in requests.iter().rev() {
            pipeline.arg(&bytes[..]);
        }
        pipeline.cmd("PEXPIRE").arg(&queue).arg(bounds::millis(LIFE)).arg("NX");
        let _ = self.client.connection.run(&pipeline).await;
    }

    fn begin(&self, subject: &Subject, bytes: Bytes, permit: OwnedSemaphorePermit) {
        let packet = Packet::read(bytes);
        let within = packet
            .get(headers::DEADLINE)
            .and_then(headers::time)
            .map_or(Duration::from_secs(30), bounds::left_until);
        if within.is_zero() {
            return; // the caller no longer waits
        }
        let caller = SmolStr::new(packet.get(headers::REPLY_TO).unwrap_or_default());
        let request = SmolStr::new(packet.get(frame::REQUEST).unwrap_or_default());
        let key = (caller, request);
        let active = self.answers.requests.begin(key.clone());
        let gone = active.gone.clone();
        let watch = tokio::spawn({
            let gone = gone.clone();
            async move {
                tokio::select! {
                    () = gone.cancelled() => {}
                    () = tokio::time::sleep(within) => gone.cancel(),
                }
            }
        });
        let reply = Reply {
            answers: self.answers.clone(),
            key,
            active,
            first: true,
            parked: Arc::default(),
            watch: watch.abort_handle(),
            _permit: permit,
        };
        let message = Arc::new(packet.message(subject));
        let responder = Responder::new(Box::new(reply), gone, self.client.config.max_payload);
        // Fails only when no receiver takes requests; then the dropped responder reports it to the caller.
        drop(self.requests.try_send(IncomingRequest { message, within, responder }));
    }

    /// Notifies the callers of all requests in progress that no answer will come.
    async fn abandon_all(&self) {
        self.notify(self.answers.requests.abandon_all()).await;
    }

    async fn notify(&self, notices: Pipeline) {
        if !notices.is_empty() {
            let _ = self.client.connection.run(&notices).await;
        }
    }
}
