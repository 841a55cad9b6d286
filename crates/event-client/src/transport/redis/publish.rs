//! Publishes messages: waiting messages share a pipeline, several pipelines are in flight, each publish has its own
//! reply.
//!
//! When no publish waits or is in flight, a publish goes to the connection directly from the caller's thread: waking
//! the writer first would double the latency of a single message.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use redis::{Cmd, Pipeline, Value};
use smol_str::SmolStr;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::codec::{self, EntryId, number, parts, text};
use super::config::Config;
use super::connection::{Connection, Live};
use super::error::{Failure, closed, odd, reply};
use super::keys::Keys;
use super::scripts;
use crate::bounds;
use crate::confirm::{Answer, Confirm};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Message, MessageId};
use crate::supervise;
use crate::transport::Receipt;

/// Maximum number of messages and bytes in one pipeline.
const BATCH: usize = 128;
const BATCH_BYTES: usize = 512 << 10;
/// Maximum number of pipelines in flight.
const WINDOW: usize = 4;
/// Maximum number of bytes that wait for their turn; beyond it publishes are refused.
const MOST_WAITING: usize = 256 << 20;

/// A message to be stored.
struct Publish {
    topic: SmolStr,
    command: Cmd,
    /// The command is a script, whose reply has another form.
    scripted: bool,
    bytes: usize,
    at: Instant,
    answer: Answer<Receipt>,
}

type Sending = Pin<Box<dyn Future<Output = Sent> + Send>>;

/// Accepts publishes and passes them to the connection or to the writer task.
pub(super) struct Outbox {
    queue: mpsc::UnboundedSender<Publish>,
    sender: Arc<Sender>,
    /// The runtime of the connection's task and its timers.
    runtime: Handle,
}

impl Outbox {
    pub(super) fn open(
        connection: Arc<Connection>,
        keys: Keys,
        config: &Config,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, received) = mpsc::unbounded_channel();
        let sender = Arc::new(Sender {
            connection: connection.clone(),
            keys,
            waiting: AtomicUsize::new(0),
            replicas: config.wait_replicas,
            patience: config.publish_timeout,
            creates: config.provision.creates(),
            registered: Mutex::default(),
            alone: Mutex::default(),
            heard: Notify::new(),
        });
        let (died, orphaned) = (connection.closed.clone(), sender.clone());
        let writing = supervise::run("redis publish", write(sender.clone(), received), move || {
            died.cancel();
            drop(orphaned.take_alone());
        });
        let task = tokio::spawn(writing);
        (Self { queue, sender, runtime: Handle::current() }, task)
    }

    pub(super) fn publish(&self, message: &Message, keys: &Keys, config: &Config) -> Confirm<Receipt> {
        // The largest size that the headers add; a smaller estimate would only cause a reallocation.
        let bytes = message.size() + 256;
        if self.sender.waiting.load(Ordering::Relaxed) + bytes > MOST_WAITING {
            let text = "too many messages wait to be sent; await confirmations before you publish more";
            return Confirm::ready(Err(Error::new(ErrorKind::Full, text).during("publish")));
        }
        let topic = SmolStr::new(message.subject.topic());
        let due = message.deliver_at.filter(|at| *at > Timestamp::now());
        let scripted = message.dedup || due.is_some();
        let command = if scripted {
            script(message, &topic, due, keys, config)
        } else {
            let mut command = Cmd::with_capacity(16, bytes);
            command.arg("XADD").arg(keys.log_argument(&topic));
            if !config.provision.creates() {
                command.arg("NOMKSTREAM");
            }
            command.arg("*");
            codec::write(message, &mut command);
            command
        };
        let (answer, confirm) = Confirm::channel();
        let publish = Publish { topic, command, scripted, bytes, at: Instant::now(), answer };
        let rest = match self.sender.waiting.fetch_add(bytes, Ordering::AcqRel) {
            0 => {
                let _timers = self.runtime.enter();
                let rest = self.sender.send_alone(publish);
                if self.queue.is_closed() {
                    // The writer has ended and reads no reply; the dropped `Answer` reports the error.
                    drop(self.sender.take_alone());
                }
                rest
            }
            _ => Some(publish),
        };
        if let Some(publish) = rest {
            // Fails only after close; then the dropped `Answer` reports the error.
            drop(self.queue.send(publish));
        }
        confirm
    }
}

fn script(message: &Message, topic: &str, due: Option<Timestamp>, keys: &Keys, config: &Config) -> Cmd {
    let id = match &message.id {
        MessageId::Uuid(id) => id.to_string(),
        MessageId::Text(text) => text.to_string(),
    };
    let window = if message.dedup { bounds::millis(config.dedup_window) } else { 0 };
    // Rounded up, so that the message is never published before its time.
    let due = due.map_or(0, |at| at.as_nanosecond().div_euclid(1_000_000) + 1);
    let mut command = scripts::PUBLISH.on(&[&keys.log(topic), &keys.delayed(topic), &keys.dedup(topic, &id)]);
    command.arg(window).arg(due as i64).arg(i32::from(config.provision.creates()));
    command.arg(keys.system().as_str()).arg(topic);
    codec::write(message, &mut command);
    command
}

/// The state that the writer and its callers share.
struct Sender {
    connection: Arc<Connection>,
    keys: Keys,
    /// Bytes of accepted publishes that have no reply yet.
    waiting: AtomicUsize,
    replicas: u32,
    patience: Duration,
    creates: bool,
    registered: Mutex<Registered>,
    /// A publish that was sent directly, without the writer.
    alone: Mutex<Option<Sending>>,
    /// Wakes the writer to poll `alone`.
    heard: Notify,
}

/// Topics that were registered over one connection: after a reconnect, another server may not have them.
#[derive(Default)]
struct Registered {
    generation: u64,
    topics: HashSet<SmolStr>,
}

struct Sent {
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
async fn write(sender: Arc<Sender>, mut queue: mpsc::UnboundedReceiver<Publish>) {
    let mut flying: FuturesUnordered<Sending> = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            Some(sent) = flying.next() => sender.answer(sent),
            () = sender.heard.notified() => flying.extend(sender.take_alone()),
            count = queue.recv_many(&mut batch, BATCH), if open && flying.len() < WINDOW => match count {
                0 => {
                    open = false;
                    flying.extend(sender.take_alone());
                }
                _ => sender.send(batch, &mut flying).await,
            }
        }
    }
}

/// Wakes the writer for a publish that was sent directly.
impl Wake for Sender {
    fn wake(self: Arc<Self>) {
        self.heard.notify_one();
    }
}

impl Sender {
    /// Sends a publish at once, if there is a connection; the writer reads its reply. Returns a publish that was not
    /// sent.
    fn send_alone(self: &Arc<Self>, publish: Publish) -> Option<Publish> {
        let Some(live) = self.connection.now() else { return Some(publish) };
        let mut sending = self.pipeline(live, vec![publish]);
        let waker = Waker::from(self.clone());
        // Locked until `alone` is stored: the writer may be woken before that.
        let mut alone = self.alone.lock().expect("not poisoned");
        match sending.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => *alone = Some(sending),
            Poll::Ready(sent) if sent.is_unsent() => return sent.unpack().pop(),
            Poll::Ready(sent) => self.answer(sent),
        }
        None
    }

    fn take_alone(&self) -> Option<Sending> {
        self.alone.lock().expect("not poisoned").take()
    }

    /// Sends a batch in one or more pipelines.
    async fn send(&self, batch: Vec<Publish>, flying: &mut FuturesUnordered<Sending>) {
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

    async fn send_part(&self, mut part: Vec<Publish>, flying: &mut FuturesUnordered<Sending>) {
        loop {
            let patience = self.patience.saturating_sub(part[0].at.elapsed());
            let live = match self.connection.live(patience).await {
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

    fn pipeline(&self, live: Live, mut batch: Vec<Publish>) -> Sending {
        let mut registered = self.registered.lock().expect("not poisoned");
        let Registered { generation, topics } = &mut *registered;
        if live.generation != *generation {
            *generation = live.generation;
            topics.clear();
        }
        let mut pipeline = Pipeline::with_capacity(batch.len() + 2);
        let mut before = 0;
        for publish in &batch {
            if self.creates && !topics.contains(&publish.topic) {
                let mut register = scripts::TOPIC.on(&[&self.keys.topics()]);
                register.arg(publish.topic.as_str()).arg(self.keys.system().as_str());
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
        let replicas = self.replicas;
        if replicas > 0 {
            pipeline.cmd("WAIT").arg(replicas).arg(bounds::millis(self.patience) / 2);
        }
        let connection = self.connection.clone();
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
                self.registered.lock().expect("not poisoned").topics.clear();
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
