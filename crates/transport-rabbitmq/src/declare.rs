//! Sends commands to the broker outside of any subscription: declaring, counting, purging, deleting.
//!
//! A command that fails closes its channel, so commands run one after another on a channel that is replaced when
//! needed.

use std::sync::Arc;

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::connection::{COMMAND, Link};
use super::error::{amqp, is_locked, is_missing, timeout as late};
use super::names::Names;
use event_transport::error::Result;

/// The channel for commands of one connection.
#[derive(Debug)]
pub(super) struct Declarer {
    link: Arc<Link>,
    names: Names,
    channel: Mutex<Option<Channel>>,
}

/// The reply to a passive declaration.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) ready: u64,
    pub(super) consumers: u64,
}

pub(super) const DURABLE: QueueDeclareOptions = QueueDeclareOptions {
    passive: false,
    durable: true,
    exclusive: false,
    auto_delete: false,
    nowait: false,
};

/// Arguments of a queue.
pub(super) fn arguments<const N: usize>(pairs: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in pairs {
        table.insert(name.into(), value);
    }
    table
}

pub(super) fn word(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

pub(super) fn number(value: u64) -> AMQPValue {
    AMQPValue::LongLongInt(i64::try_from(value).unwrap_or(i64::MAX))
}

impl Declarer {
    pub(super) fn new(link: Arc<Link>, names: Names) -> Self {
        Self { link, names, channel: Mutex::new(None) }
    }

    /// Runs `step` on the channel, one step at a time, and returns the broker's answer. A failed step loses the channel.
    async fn ask<T>(
        &self,
        what: &str,
        step: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
    ) -> Result<lapin::Result<T>> {
        let mut kept = self.channel.lock().await;
        let channel = match kept.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.link.channel().await?,
        };
        let answer = timeout(COMMAND, step(&channel)).await.map_err(|_| late(what))?;
        if answer.is_ok() {
            *kept = Some(channel);
        }
        Ok(answer)
    }

    /// Runs `step` on the channel.
    pub(super) async fn run<T>(
        &self,
        what: &str,
        step: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
    ) -> Result<T> {
        self.ask(what, step).await?.map_err(amqp)
    }

    /// Like `run`; `None` when the exchange or queue does not exist.
    async fn find<T>(
        &self,
        what: &str,
        step: impl AsyncFnOnce(&Channel) -> lapin::Result<T>,
    ) -> Result<Option<T>> {
        match self.ask(what, step).await? {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(amqp(error)),
        }
    }

    pub(super) async fn declare(&self, queue: ShortString, arguments: FieldTable) -> Result<()> {
        let shown = queue.clone();
        self.run("declare a queue", async |channel| channel.queue_declare(queue, DURABLE, arguments).await)
            .await
            .map(drop)
            .map_err(|error| error.with("queue", shown))
    }

    /// RabbitMQ, 3.10 and 4.3 alike, stores the name of a new quorum queue only with the next one: a broker that is
    /// killed within seconds restarts with a queue that never answers. So another quorum queue is declared for a
    /// moment.
    pub(super) async fn settle_names(&self) {
        let queue = self.names.lock(&format!("settle-{}", event_transport::consumer_name()));
        let arguments = arguments([("x-queue-type", word("quorum")), ("x-expires", number(60_000))]);
        let done = async {
            self.declare(queue.clone(), arguments).await?;
            self.delete(queue).await
        };
        if let Err(error) = done.await {
            tracing::debug!(%error, "a queue's name will be stored later");
        }
    }

    pub(super) async fn exchange(&self, exchange: ShortString, kind: ExchangeKind) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let shown = exchange.clone();
        self.run("declare an exchange", async |channel| {
            channel.exchange_declare(exchange, kind, options, FieldTable::default()).await
        })
        .await
        .map_err(|error| error.with("exchange", shown))
    }

    /// Whether an exchange of this name exists.
    pub(super) async fn has_exchange(&self, exchange: ShortString) -> Result<bool> {
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        let found = self.find("look for an exchange", async |channel| {
            channel.exchange_declare(exchange, ExchangeKind::Topic, options, FieldTable::default()).await
        });
        Ok(found.await?.is_some())
    }

    pub(super) async fn bind(
        &self,
        queue: &ShortString,
        exchange: ShortString,
        key: ShortString,
    ) -> Result<()> {
        let queue = queue.clone();
        self.run("bind a queue", async |channel| {
            channel.queue_bind(queue, exchange, key, QueueBindOptions::default(), FieldTable::default()).await
        })
        .await
    }

    pub(super) async fn unbind(
        &self,
        queue: &ShortString,
        exchange: ShortString,
        key: ShortString,
    ) -> Result<()> {
        let queue = queue.clone();
        self.run("unbind a queue", async |channel| {
            channel.queue_unbind(queue, exchange, key, FieldTable::default()).await
        })
        .await
    }

    /// Ready messages and consumers of a queue; `None` when the queue does not exist.
    pub(super) async fn counts(&self, queue: ShortString) -> Result<Option<Counts>> {
        let options = QueueDeclareOptions { passive: true, ..DURABLE };
        let found = self.find("count a queue", async |channel| {
            channel.queue_declare(queue, options, FieldTable::default()).await
        });
        Ok(found.await?.map(|queue| Counts {
            ready: queue.message_count().into(),
            consumers: queue.consumer_count().into(),
        }))
    }

    /// Number of ready messages of a queue; 0 when the queue does not exist.
    pub(super) async fn ready(&self, queue: ShortString) -> Result<u64> {
        Ok(self.counts(queue).await?.map_or(0, |counts| counts.ready))
    }

    /// Number of consumers of a queue; 0 when the queue does not exist.
    pub(super) async fn consumers(&self, queue: ShortString) -> Result<u64> {
        Ok(self.counts(queue).await?.map_or(0, |counts| counts.consumers))
    }

    /// Removes the ready messages of a queue, which may be missing.
    pub(super) async fn purge(&self, queue: ShortString) -> Result<()> {
        let purged = self.find("purge a queue", async |channel| {
            channel.queue_purge(queue, QueuePurgeOptions::default()).await
        });
        purged.await.map(drop)
    }

    /// Deletes a queue, which may be missing.
    pub(super) async fn delete(&self, queue: ShortString) -> Result<()> {
        let deleted = self.find("delete a queue", async |channel| {
            channel.queue_delete(queue, QueueDeleteOptions::default()).await
        });
        deleted.await.map(drop)
    }

    /// Declares an exclusive queue; `false` when another connection has it.
    pub(super) async fn claim(&self, queue: ShortString) -> Result<bool> {
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, durable: false, ..DURABLE };
        let claimed = self.ask("take a lock", async |channel| {
            channel.queue_declare(queue, options, FieldTable::default()).await
        });
        match claimed.await? {
            Ok(_) => Ok(true),
            Err(error) if is_locked(&error) => Ok(false),
            Err(error) => Err(amqp(error)),
        }
    }
}
