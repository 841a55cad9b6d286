//! Broadcast subscriptions: each subscriber reads the logs itself, and the server keeps no state for it.
//!
//! A log is trimmed without regard to subscribers, and a read begins with the oldest entry that is left. So a
//! subscriber that has fallen behind compares the number of entries that the log has removed with the number that it
//! has passed.

use std::collections::VecDeque;
use std::sync::Arc;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use smol_str::SmolStr;
use tokio::sync::Notify;

use super::blocking::{LONGEST, Reader};
use super::client::{Client, Patience};
use super::codec::{self, Entry, EntryId, args, number, parts, text};
use super::connection::RETRY;
use super::error::reply;
use super::group::last_unwanted;
use super::pubsub::Listening;
use event_transport::bounds;
use event_transport::delivery::{Delivery, DeliveryInfo};
use event_transport::error::Result;
use event_transport::outage::Outage;
use event_transport::subject::Pattern;
use event_transport::subscription::{Feed, Subscription};
use event_transport::supervise;
use event_transport::{Start, Subscribe};

/// Maximum number of entries in one read.
const BATCH: usize = 256;

/// A log and the position up to which it was read.
struct Tail {
    topic: SmolStr,
    stream: String,
    last: EntryId,
    /// Number of entries at or before `last`, removed ones included; a lower bound.
    passed: u64,
}

struct Tails {
    client: Arc<Client>,
    filters: Vec<Pattern>,
    wild: bool,
    feed: Feed,
    tails: Vec<Tail>,
    /// Entries that were read and not yet delivered, for lack of room.
    waiting: VecDeque<Entry>,
    /// There may be more entries to read, or reading had to wait for the subscriber.
    behind: bool,
    reader: Option<Reader>,
    wake: Arc<Notify>,
}

pub(super) async fn broadcast(client: &Arc<Client>, spec: Subscribe) -> Result<Subscription> {
    let mut patience = Patience::new(client);
    loop {
        match listen(client, spec.clone()).await {
            Err(error) if patience.lasts(&error).await => {}
            outcome => return outcome,
        }
    }
}

async fn listen(client: &Arc<Client>, spec: Subscribe) -> Result<Subscription> {
    let wake = Arc::new(Notify::new());
    let wild = spec.filters.iter().any(|filter| filter.topic().is_none());
    let mut listening = Vec::new();
    if wild {
        let told = wake.clone();
        let topics = client.subscriber.on(client.keys.system(), move |message| {
            if !message.starts_with(b"delay") {
                told.notify_one();
            }
        });
        listening.push(topics.await?);
    }
    let (feed, subscription) = Subscription::channel(spec.max_in_flight);
    let mut tails = Tails {
        client: client.clone(),
        wild,
        feed,
        tails: Vec::new(),
        waiting: VecDeque::new(),
        behind: false,
        reader: None,
        wake,
        filters: spec.filters,
    };
    tails.find(spec.start).await?;
    let (told, stopped, closing) = (tails.wake.clone(), tails.feed.stopped().clone(), client.closing.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = closing.cancelled() => {}
        }
        told.notify_one();
    });
    tokio::spawn(supervise::run("redis broadcast", run(tails, listening), || {}));
    Ok(subscription)
}

async fn run(mut tails: Tails, listening: Vec<Listening>) {
    let mut backoff = RETRY;
    let mut outage = Outage::default();
    while !tails.is_over() {
        match tails.step().await {
            Ok(()) => {
                outage.ends(&tails.feed);
                backoff = RETRY;
            }
            Err(error) => {
                if outage.begins(&tails.feed, &error.to_string()) {
                    tracing::warn!(%error, "a broadcast subscription cannot read; trying again");
                }
                tails.reader = None;
                tokio::select! {
                    () = backoff.pause() => {}
                    () = tails.feed.stopped().cancelled() => {}
                    () = tails.client.closing.cancelled() => {}
                }
            }
        }
    }
    drop(listening);
}

impl Tails {
    fn is_over(&self) -> bool {
        self.feed.stopped().is_cancelled() || self.client.closing.is_cancelled()
    }

    /// Adds the topics that are not read yet.
    async fn find(&mut self, start: Start) -> Result<()> {
        let mut topics: Vec<SmolStr> =
            self.filters.iter().filter_map(|filter| filter.topic().map(SmolStr::new)).collect();
        if self.wild {
            topics.extend(self.client.topics().await?);
        }
        topics.sort();
        topics.dedup();
        topics.retain(|topic| !self.tails.iter().any(|tail| tail.topic == *topic));
        let streams: Vec<String> = topics.iter().map(|topic| self.client.keys.log(topic)).collect();
        let mut pipeline = Pipeline::new();
        for stream in &streams {
            pipeline.cmd("XINFO").arg("STREAM").arg(stream);
        }
        if streams.is_empty() {
            return Ok(());
        }
        let answers = self.client.connection.run(&pipeline).await?;
        for ((topic, stream), info) in topics.into_iter().zip(streams).zip(answers) {
            let log = Log::read(info)?;
            // A start in the future means the end of the log.
            let last = last_unwanted(start).map_or(log.newest, |id| id.min(log.newest));
            let passed = if last == log.newest { log.added } else { log.gone };
            self.tails.push(Tail { topic, stream, last, passed });
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<()> {
        if self.reader.is_none() {
            self.reader = Some(Reader::open(&self.client.connection).await?);
        }
        if self.wild {
            // Topics that were created after the subscription are read from their first message on.
            self.find(Start::Earliest).await?;
        }
        while let Some(entry) = self.waiting.pop_front() {
            let slot = match self.feed.try_slot() {
                Some(slot) => slot,
                None => {
                    self.behind = true;
                    tokio::select! {
                        slot = self.feed.slot() => slot,
                        () = self.feed.stopped().cancelled() => return Ok(()),
                        () = self.client.closing.cancelled() => return Ok(()),
                    }
                }
            };
            let mut info = DeliveryInfo::new(1);
            info.position = Some(entry.origin.position());
            info.published_at = entry.origin.time();
            if !entry.is_expired(Timestamp::now()) {
                self.feed.push(Delivery::unleased(Arc::new(entry.message), info, Some(slot)));
            }
        }
        if self.tails.is_empty() {
            self.wake.notified().await;
            return Ok(());
        }
        if std::mem::take(&mut self.behind) {
            self.count_missed().await?;
        }
        self.read().await
    }

    /// Reports the number of entries that were trimmed before they were read.
    async fn count_missed(&mut self) -> Result<()> {
        let mut pipeline = Pipeline::new();
        for tail in &self.tails {
            pipeline.cmd("XINFO").arg("STREAM").arg(&tail.stream);
        }
        let answers = self.client.connection.run(&pipeline).await?;
        for (tail, info) in self.tails.iter_mut().zip(answers) {
            let log = Log::read(info)?;
            if log.oldest.is_none_or(|oldest| oldest > tail.last) {
                self.feed.missed("redis", log.gone.saturating_sub(tail.passed));
                tail.passed = tail.passed.max(log.gone);
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<()> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let block = reader.patience(LONGEST);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(bounds::millis(block)).arg("STREAMS");
        args(&mut command, self.tails.iter().map(|tail| &tail.stream));
        args(&mut command, self.tails.iter().map(|tail| tail.last));
        let answer = reader.wait(&command, block, &self.wake).await?;
        for stream in parts(answer) {
            let mut stream = parts(stream).into_iter();
            let key = stream.next().unwrap_or_default();
            let Some(tail) = self.tails.iter_mut().find(|tail| tail.stream == text(&key)) else { continue };
            let entries = parts(stream.next().unwrap_or_default());
            self.behind |= entries.len() >= BATCH;
            tail.passed += entries.len() as u64;
            for value in entries {
                let Some(entry) = codec::read(value, &tail.topic) else { continue };
                tail.last = tail.last.max(entry.id);
                if !entry.ill_named
                    && self.filters.iter().any(|filter| filter.matches(&entry.message.subject))
                {
                    self.waiting.push_back(entry);
                }
            }
        }
        Ok(())
    }
}

/// The state of a log; the default is that of a stream that does not exist.
#[derive(Default)]
struct Log {
    newest: EntryId,
    oldest: Option<EntryId>,
    /// Number of entries ever added.
    added: u64,
    /// Number of those entries that were removed.
    gone: u64,
}

impl Log {
    fn read(info: Value) -> Result<Self> {
        if super::error::is_code(&info, "no such key") {
            return Ok(Self::default());
        }
        let info = parts(reply(info)?);
        let field =
            |name: &str| info.chunks(2).find(|pair| text(&pair[0]) == name).and_then(|pair| pair.get(1));
        let count = |name| field(name).map_or(0, |count| u64::try_from(number(count)).unwrap_or(0));
        let newest = field("last-generated-id").map_or(Ok(EntryId::default()), |id| text(id).parse())?;
        let oldest = match field("first-entry") {
            Some(Value::Array(entry)) => entry.first().map(|id| text(id).parse()).transpose()?,
            _ => None,
        };
        let added = count("entries-added");
        Ok(Self { newest, oldest, added, gone: added.saturating_sub(count("length")) })
    }
}
