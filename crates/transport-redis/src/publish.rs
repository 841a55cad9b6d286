//! Publishes messages: accepts each, and passes it to the connection or to the writer task.
//!
//! When no publish waits or is in flight, a publish goes to the connection directly from the caller's thread: waking
//! the writer first would double the latency of a single message.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use redis::Cmd;
use smol_str::SmolStr;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::Client;
use super::config::Config;
use super::error::closed;
use super::keys::Keys;
use super::writer::{Publish, Sender, write};
use super::{codec, scripts};
use event_transport::Receipt;
use event_transport::bounds;
use event_transport::confirm::Confirm;
use event_transport::error::{Error, ErrorKind};
use event_transport::message::{Message, MessageId};
use event_transport::supervise;
use event_transport::sync::lock;

/// Maximum number of bytes that wait for their turn; beyond it publishes are refused.
const MOST_WAITING: usize = 256 << 20;

/// Publishes messages until the bus is closed.
pub(super) struct Publisher {
    client: Arc<Client>,
    /// `None` once the bus is closed.
    outbox: Mutex<Option<Outbox>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Publisher {
    pub(super) fn open(client: Arc<Client>) -> Self {
        let (queue, received) = mpsc::unbounded_channel();
        let sender = Arc::new(Sender::new(client.clone()));
        let (died, orphaned) = (client.connection.closed.clone(), sender.clone());
        let writing = supervise::run("redis publish", write(sender.clone(), received), move || {
            died.cancel();
            orphaned.drop_direct();
        });
        let writer = Mutex::new(Some(tokio::spawn(writing)));
        let outbox = Mutex::new(Some(Outbox { queue, sender, runtime: Handle::current() }));
        Self { client, outbox, writer }
    }

    pub(super) fn publish(&self, message: &Message) -> Confirm<Receipt> {
        if !self.client.kept.covers(message.durability) {
            let text = "the server's durability was reduced after this bus was opened; set `appendonly yes` and `appendfsync always` on the server for `fsync`";
            let error = Error::new(ErrorKind::Unsupported, text).with("subject", &message.subject);
            return Confirm::ready(Err(error.during("publish")));
        }
        match &*lock(&self.outbox) {
            Some(outbox) => outbox.publish(message, &self.client.keys, &self.client.config),
            None => Confirm::ready(Err(closed().during("publish"))),
        }
    }

    /// Waits until every accepted publish has its reply.
    pub(super) async fn close(&self) {
        // Without its queue, the writer ends when every publish has its reply.
        drop(lock(&self.outbox).take());
        let writer = lock(&self.writer).take();
        if let Some(writer) = writer {
            let _ = tokio::time::timeout(self.client.config.publish_timeout, writer).await;
        }
    }
}

/// Accepts publishes and passes them to the connection or to the writer task.
struct Outbox {
    queue: mpsc::UnboundedSender<Publish>,
    sender: Arc<Sender>,
    /// The runtime of the connection's task and its timers.
    runtime: Handle,
}

impl Outbox {
    fn publish(&self, message: &Message, keys: &Keys, config: &Config) -> Confirm<Receipt> {
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
                let rest = self.sender.send_direct(publish);
                if self.queue.is_closed() {
                    // The writer has ended and reads no reply; the dropped `Answer` reports the error.
                    self.sender.drop_direct();
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
