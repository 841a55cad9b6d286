//! Sends publishes: waiting ones share a pipeline, several pipelines are in flight, and each publish has its own reply.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, Pipeline, Value};
use smol_str::SmolStr;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::Client;
use super::codec::{EntryId, number, parts, text};
use super::connection::Live;
use super::direct::{Direct, Sending};
use super::error::{Failure, closed, odd, reply};
use super::scripts;
use event_transport::Receipt;
use event_transport::bounds;
use event_transport::confirm::Answer;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::sync::lock;

/// Maximum number of messages and bytes in one pipeline.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 512 << 10;
/// Maximum number of pipelines in flight.
const WINDOW: usize = 4;

/// A message to be stored.
pub(super) struct Publish {
    pub(super) topic: SmolStr,
    pub(super) command: Cmd,
    /// The command is a script, whose reply has another form.
    pub(super) scripted: bool,
    pub(super) bytes: usize,
    pub(super) at: Instant,
    pub(super) answer: Answer<Receipt>,
}

/// The state that the writer and its callers share.
pub(super) struct Sender {
    client: Arc<Client>,
    /// Bytes of accepted publishes that have no reply yet.
    pub(super) waiting: AtomicUsize,
    registered: Mutex<Registered>,
    direct: Arc<Direct<Sent>>,
}

/// Topics that were registered over one connection: after a reconnect, another server may not have them.
#[derive(Default)]
struct Registered {
    generation: u64,
    topics: HashSet<SmolStr>,
}

pub(super) struct Sent {
    batch: Vec<Publish>,
    pipeline: Pipeline,
    /// Number of replies before those of the batch.
    before: usize,
    /// If not 0, one more reply follows them: the number of replicas that have the batch.
    replicas: u32,
    replies: Result<Vec<Value>, Failure>,
}

impl Sent {
    /// Whether nothing was sent because the connection had ended; another connection will follow.
    fn is_unsent(&self) -> bool {
        matches!(self.replies, Err(Failure::Unsent(_)))
    }

    /// Returns the batch with its commands restored.
    fn unpack(mut self) -> Vec<Publish> {
        for (publish, command) in self.batch.iter_mut().zip(self.pipeline.cmd_iter().skip(self.before)) {
            publish.command = command.clone();
        }
        self.batch
    }
}

/// Sends waiting publishes, in order.
pub(super) async fn write(sender: Arc<Sender>, mut queue: mpsc::UnboundedReceiver<Publish>) {
    let mut flying: FuturesUnordered<Sending<Sent>> = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            Some(sent) = flying.next() => sender.answer(sent),
            () = sender.direct.ready() => flying.extend(sender.direct.take()),
            count = queue.recv_many(&mut batch, BATCH), if open && flying.len() < WINDOW => match count {
                0 => {
                    open = false;
                    flying.extend(sender.direct.take());
                }
                _ => sender.send(batch, &mut flying).await,
            }
        }
    }
}

impl Sender {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client, waiting: AtomicUsize::new(0), registered: Mutex::default(), direct: Direct::new() }
    }

    /// Sends a publish at once, if there is a connection; the writer reads its reply. Returns a publish that was not
    /// sent.
    pub(super) fn send_direct(&self, publish: Publish) -> Option<Publish> {
        let Some(live) = self.client.connection.now() else { return Some(publish) };
        match self.direct.start(self.pipeline(live, vec![publish])) {
            Some(sent) if sent.is_unsent() => return sent.unpack().pop(),
            Some(sent) => self.answer(sent),
            None => {}
        }
        None
    }

    /// Drops a publish that the writer no longer completes: its dropped `Answer` reports the error.
    pub(super) fn drop_direct(&self) {
        drop(self.direct.take());
    }

    /// Sends a batch in one or more pipelines.
    async fn send(&self, batch: Vec<Publish>, flying: &mut FuturesUnordered<Sending<Sent>>) {
        let mut batch = batch.into_iter().peekable();
        while batch.peek().is_some() {
            let mut bytes = 0;
            let mut part = Vec::new();
            while let Some(next) = batch.next_if(|next| part.is_empty() || bytes + next.bytes <= BATCH_BYTES)
            {
                bytes += next.bytes;
                part.push(next);
            }
            self.send_part(part, flying).await;
        }
    }

    async fn send_part(&self, mut part: Vec<Publish>, flying: &mut FuturesUnordered<Sending<Sent>>) {
        loop {
            let patience = self.client.config.publish_timeout.saturating_sub(part[0].at.elapsed());
            let live = match self.client.connection.live(patience).await {
                Ok(live) => live,
                Err(failure) => {
                    let pipeline = Pipeline::default();
                    let failed =
                        Sent { batch: part, pipeline, before: 0, replicas: 0, replies: Err(failure) };
                    return self.answer(failed);
                }
            };
            let mut sending = self.pipeline(live, part);
            // The first poll passes the pipeline to the connection, so that publishes stay in order.
            match futures_util::poll!(&mut sending) {
                Poll::Ready(sent) if sent.is_unsent() => part = sent.unpack(),
                Poll::Ready(sent) => return self.answer(sent),
                Poll::Pending => return flying.push(sending),
            }
        }
    }

    fn pipeline(&self, live: Live, mut batch: Vec<Publish>) -> Sending<Sent> {
        let Client { config, keys, .. } = &*self.client;
        let mut registered = lock(&self.registered);
        let Registered { generation, topics } = &mut *registered;
        if live.generation != *generation {
            *generation = live.generation;
            topics.clear();
        }
        let mut pipeline = Pipeline::with_capacity(batch.len() + 2);
        let mut before = 0;
        for publish in &batch {
            if config.provision.creates() && !topics.contains(&publish.topic) {
                let mut register = scripts::TOPIC.on(&[&keys.topics()]);
                register.arg(publish.topic.as_str()).arg(keys.system().as_str());
                pipeline.add_command(register);
                before += 1;
                // The number of topic names has no bound; this memory must have one.
                if topics.len() > 10_000 {
                    topics.clear();
                }
                topics.insert(publish.topic.clone());
            }
        }
        drop(registered);
        for publish in &mut batch {
            pipeline.add_command(std::mem::take(&mut publish.command));
        }
        let replicas = config.wait_replicas;
        if replicas > 0 {
            pipeline.cmd("WAIT").arg(replicas).arg(bounds::millis(config.publish_timeout) / 2);
        }
        let connection = self.client.connection.clone();
        Box::pin(async move {
            let replies = connection.run_on(live, &pipeline).await;
            Sent { batch, pipeline, before, replicas, replies }
        })
    }

    fn answer(&self, sent: Sent) {
        let Sent { batch, before, replicas, replies, .. } = sent;
        self.waiting.fetch_sub(batch.iter().map(|publish| publish.bytes).sum(), Ordering::AcqRel);
        match replies {
            Ok(mut replies) => {
                let copies = if replicas > 0 { replies.pop().map_or(0, |value| number(&value)) } else { 0 };
                let too_few = copies < i64::from(replicas);
                let replies = replies.into_iter().skip(before);
                for (publish, value) in batch.into_iter().zip(replies).rev() {
                    let mut result = receipt(value, publish.scripted);
                    if too_few && result.is_ok() {
                        let text = "the message is stored, but too few replicas have it; it may be lost if the master fails";
                        result = Err(Error::new(ErrorKind::Unavailable, text)
                            .with("replicas", copies)
                            .with("wait_replicas", replicas));
                    }
                    let _ = publish.answer.send(result.map_err(|error| error.during("publish")));
                }
            }
            Err(failure) => {
                lock(&self.registered).topics.clear();
                let (kind, text) = match failure {
                    Failure::Unsent(error) => (error.kind(), error.to_string()),
                    Failure::Unknown(error) => (
                        error.kind(),
                        format!("{error}; the outcome is unknown, publish again with a dedup id"),
                    ),
                };
                let say = || match kind {
                    ErrorKind::Closed => closed(),
                    _ => Error::new(kind, "not confirmed").because(text.clone()),
                };
                for publish in batch {
                    let _ = publish.answer.send(Err(say().during("publish")));
                }
            }
        }
    }
}

fn receipt(value: Value, scripted: bool) -> Result<Receipt> {
    let value = reply(value)?;
    let (id, duplicate) = if scripted {
        let mut answer = parts(value).into_iter();
        (answer.next().unwrap_or_default(), answer.next().is_some_and(|value| number(&value) == 1))
    } else {
        (value, false)
    };
    match &id {
        Value::Nil => Err(Error::new(
            ErrorKind::NotFound,
            "the topic's stream does not exist and `provision` does not allow to create it; run `backbone topology apply`, or connect with `provision=create`",
        )),
        id => match text(id) {
            "" => Ok(Receipt { position: None, duplicate }),
            id => {
                let id: EntryId = id.parse().map_err(|_| odd("an id"))?;
                Ok(Receipt { position: Some(id.position()), duplicate })
            }
        },
    }
}
