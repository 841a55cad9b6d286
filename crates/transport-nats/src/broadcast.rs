//! Broadcast subscriptions: an ephemeral consumer in the server's memory for each topic, without acknowledgements.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::api::nanos;
use super::group::consumer::{self, Floor};
use super::group::{Groups, StartAt};
use super::poison::defect;
use super::pull::{PullStatus, Pulls};
use super::source::Source;
use super::streams::{self, StreamInfo};
use super::{codec, kv, names};
use event_transport::delivery::{Delivery, DeliveryInfo};
use event_transport::error::Result;
use event_transport::message::Position;
use event_transport::outage::Outage;
use event_transport::subject::Pattern;
use event_transport::subscription::{Feed, Health, Subscription};
use event_transport::telemetry::count_expired;
use event_transport::{Start, Subscribe};

/// Interval of scans for topics, in addition to the notifications of new ones.
const RESCAN: Duration = Duration::from_secs(30);
/// Delay before a gap is checked.
const LOOK: Duration = Duration::from_millis(200);

struct Listener {
    groups: Arc<Groups>,
    feed: Feed,
    filters: Vec<Pattern>,
    start: Start,
    inbox: String,
    messages: Subscriber,
    news: Subscriber,
    pulls: Pulls,
    /// The read position of each topic that has had a consumer.
    places: HashMap<SmolStr, Place>,
    /// The subscriber had no free slot at some time since gaps were last checked.
    behind: bool,
    /// Time of the next check of gaps.
    look: Option<Instant>,
    outage: Outage,
}

/// The read position in a topic.
struct Place {
    /// Creation time of its stream.
    made: Option<Timestamp>,
    /// Stream sequence of the next message.
    next: u64,
    /// Consumer sequence of the last message that arrived from the present consumer.
    turn: u64,
    /// Sequence from which messages were skipped since the subscriber fell behind, and their number. Skipped messages
    /// do not match the filter or were deleted from the stream.
    gap: Option<(u64, u64)>,
}

/// Opens a broadcast. Returns the task that receives its messages.
pub(super) async fn subscribe(
    groups: &Arc<Groups>,
    spec: Subscribe,
) -> Result<(Subscription, impl Future<Output = ()> + use<>)> {
    let (feed, subscription) = Subscription::channel(spec.max_in_flight);
    let client = &groups.client;
    let inbox = client.new_inbox();
    let mut listener = Listener {
        messages: client.subscribe(format!("{inbox}.>")).await?,
        news: client.subscribe(client.names.news()).await?,
        pulls: Pulls::new(client.outbound.clone(), inbox.clone()),
        groups: groups.clone(),
        feed,
        filters: spec.filters,
        start: spec.start,
        inbox,
        places: HashMap::new(),
        behind: false,
        look: None,
        outage: Outage::default(),
    };
    listener.scan().await?;
    // A topic that is created from now on is read from its beginning.
    if listener.start == Start::New {
        listener.start = Start::Earliest;
    }
    Ok((subscription, listener.run()))
}

impl Listener {
    /// Creates a consumer for each topic that has none in this listener.
    async fn scan(&mut self) -> Result<()> {
        let mut topics: Vec<SmolStr> =
            self.filters.iter().filter_map(Pattern::topic).map(SmolStr::new).collect();
        if self.filters.iter().any(|filter| filter.topic().is_none()) {
            topics.extend(streams::topics(&self.groups.client).await?);
        }
        topics.sort();
        topics.dedup();
        for topic in topics {
            let stream = self.groups.client.names.stream(&topic);
            if !self.pulls.sources().any(|source| source.stream == stream) {
                let consumer = self.create(&topic, &stream).await?;
                self.pulls.add(Source::new(stream, consumer, false));
            }
        }
        Ok(())
    }

    async fn create(&mut self, topic: &str, stream: &str) -> Result<String> {
        #[derive(Deserialize)]
        struct Created {
            name: String,
            delivered: Floor,
        }
        let reaching = self.filters.iter().filter(|filter| filter.topic().is_none_or(|own| own == topic));
        let mut config = json!({
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": true,
            "num_replicas": 1,
            "inactive_threshold": nanos(Duration::from_secs(60)),
        });
        // Several filters would be one more setting that an old server ignores. Messages that do not match are
        // dropped here.
        if let [filter] = names::cover(reaching, topic, false).as_slice() {
            config["filter_subject"] = json!(self.groups.client.names.event(filter));
        }
        let made = self.groups.stand(topic).await?;
        let from = match self.places.get(topic) {
            Some(place) if place.made == made => StartAt::Sequence(place.next),
            // The stream was deleted and created again, so all its messages are new.
            Some(_) => {
                self.places.remove(topic);
                StartAt::All
            }
            None => StartAt::new(self.start),
        };
        from.write(&mut config);
        let body = json!({ "stream_name": stream, "config": config });
        let created: Created = self.groups.client.api(&format!("CONSUMER.CREATE.{stream}"), &body).await?;
        let first = Place { made, next: created.delivered.stream_seq + 1, turn: 0, gap: None };
        self.places.entry(topic.into()).or_insert(first).turn = 0;
        Ok(created.name)
    }

    async fn run(mut self) {
        let mut connects = self.groups.client.link.connects.clone();
        connects.mark_unchanged();
        let (closed, stopped) = (self.groups.client.closed.clone(), self.feed.stopped().clone());
        let mut rescan = Instant::now() + RESCAN;
        self.feed.report(Health::Live);
        loop {
            // Read once: slots that are released later wake the `slot` branch below.
            let free = self.feed.free();
            let (wake, silent) = self.pulls.top_up(free);
            if silent {
                self.begin_outage("a pull was not answered");
                self.renew().await;
            }
            let next = [wake, self.look].into_iter().flatten().fold(rescan, Instant::min);
            let full = free == 0;
            self.behind |= full;
            tokio::select! {
                message = self.messages.next(), if !full => {
                    let Some(message) = message else { break };
                    self.on_message(message).await;
                    while self.feed.free() > 0 && let Some(Some(message)) = self.messages.next().now_or_never() {
                        self.on_message(message).await;
                    }
                }
                slot = self.feed.slot(), if full => drop(slot),
                news = self.news.next() => if news.is_some() { self.rescan().await } else { break },
                _ = connects.changed() => self.renew().await,
                () = tokio::time::sleep_until(next) => {}
                () = stopped.cancelled() => break,
                () = closed.cancelled() => break,
                () = self.groups.client.outbound.closing() => break,
            }
            if self.look.is_some_and(|at| Instant::now() >= at) {
                self.count_missed().await;
            }
            if Instant::now() >= rescan {
                self.rescan().await;
                rescan = Instant::now() + RESCAN;
            }
            tokio::task::coop::consume_budget().await;
        }
        let sources: Vec<_> = self.pulls.sources().cloned().collect();
        for source in sources {
            let _ = consumer::delete(&self.groups.client, &source.stream, &source.consumer).await;
        }
    }

    async fn on_message(&mut self, message: async_nats::Message) {
        if let Some(status) = message.status
            && message.reply.is_none()
        {
            match self.pulls.status(&message, status) {
                PullStatus::Alive => self.end_outage(),
                PullStatus::Failed(text) => {
                    self.begin_outage(&text);
                    self.renew().await;
                }
                PullStatus::Ignored => {}
            }
            return;
        }
        let Some(reply) = message.reply.clone() else { return };
        let Some(ack) = codec::AckInfo::read(&reply) else { return };
        if self.pulls.received(ack.stream, ack.consumer, Instant::now()).is_none() {
            return;
        }
        let Some(topic) = self.groups.client.names.topic(ack.stream) else { return };
        let Some(place) = self.places.get_mut(topic) else { return };
        if ack.turn != place.turn + 1 {
            // An earlier message was lost in transit. It is delivered again, and this one after it.
            self.begin_outage("messages were lost in transit");
            return self.renew().await;
        }
        if self.behind && ack.sequence > place.next {
            let (from, size) = place.gap.unwrap_or((place.next, 0));
            place.gap = Some((from, size + (ack.sequence - place.next)));
            self.look.get_or_insert_with(|| Instant::now() + LOOK);
        }
        (place.next, place.turn) = (ack.sequence + 1, ack.turn);
        let Some(subject) = codec::subject(&self.groups.client.names, &message.subject) else { return };
        if !self.filters.iter().any(|filter| filter.matches(&subject)) {
            return;
        }
        let decoded = codec::message(message.headers.as_ref(), message.payload, subject, || ack.id());
        if decoded.expires_at.is_some_and(|at| at <= jiff::Timestamp::now()) {
            return count_expired("nats", 1);
        }
        let mut info = DeliveryInfo::new(1);
        info.position = Some(Position(u128::from(ack.sequence)));
        info.published_at = Some(ack.published_at());
        let slot = self.feed.try_slot();
        self.feed.push(Delivery::unleased(Arc::new(decoded), info, slot));
    }

    /// Reports messages that the stream deleted before the subscriber had room for them.
    async fn count_missed(&mut self) {
        (self.behind, self.look) = (false, None);
        for (topic, place) in &mut self.places {
            let Some((from, size)) = place.gap.take() else { continue };
            let stream = self.groups.client.names.stream(topic);
            let info: Result<StreamInfo, _> =
                self.groups.client.api(&format!("STREAM.INFO.{stream}"), &json!({})).await;
            match info {
                Ok(info) => self.feed.missed("nats", info.state.first_seq.saturating_sub(from).min(size)),
                // Checked again with the next gap.
                Err(_) => {
                    place.gap = Some((from, size));
                    self.behind = true;
                }
            }
        }
    }

    async fn rescan(&mut self) {
        if let Err(error) = self.scan().await {
            self.begin_outage(&error.to_string());
        }
    }

    /// Checks all consumers, because the server may have lost some, and creates lost ones again at their read
    /// position.
    async fn renew(&mut self) {
        self.pulls.forget();
        let sources: Vec<_> = self.pulls.sources().cloned().collect();
        for source in sources {
            match consumer::info(&self.groups.client, &source.stream, &source.consumer).await {
                Ok(Some(info)) => self.go_back(&source, info.delivered.stream_seq).await,
                Ok(None) => self.pulls.remove(&source),
                Err(error) => self.begin_outage(&error.to_string()),
            }
        }
        self.rescan().await;
    }

    /// Creates the consumer again at the first message that was delivered but did not arrive. Messages that cannot be
    /// read are skipped, because they would break the connection again.
    async fn go_back(&mut self, source: &Arc<Source>, delivered: u64) {
        let Some(topic) = self.groups.client.names.topic(&source.stream).map(SmolStr::new) else { return };
        let Some(place) = self.places.get(&topic).filter(|place| place.next <= delivered) else { return };
        let (made, mut next) = (place.made, place.next);
        while next <= delivered {
            let raw = match kv::read_raw(&self.groups.client, &source.stream, json!({ "seq": next })).await {
                Ok(raw) => raw,
                Err(error) => return self.begin_outage(&error.to_string()),
            };
            if let Some(raw) = raw {
                let subject = codec::subject(&self.groups.client.names, &raw.subject);
                let wanted =
                    subject.is_some_and(|own| self.filters.iter().any(|filter| filter.matches(&own)));
                match defect(&raw) {
                    None if wanted => break,
                    None => {}
                    Some(why) => tracing::warn!(
                        stream = %source.stream,
                        position = raw.seq,
                        error = why,
                        "a broadcast skipped a message of another client that cannot be read"
                    ),
                }
            }
            next += 1;
        }
        let gap = self.places.get(&topic).and_then(|place| place.gap);
        self.places.insert(topic, Place { made, next, turn: 0, gap });
        self.pulls.remove(source);
        let _ = consumer::delete(&self.groups.client, &source.stream, &source.consumer).await;
    }

    fn begin_outage(&mut self, what: &str) {
        if self.outage.begins(&self.feed, what) {
            tracing::warn!(inbox = %self.inbox, error = what, "a broadcast is interrupted and will be retried");
        }
    }

    fn end_outage(&mut self) {
        if self.outage.ends(&self.feed) {
            tracing::info!(inbox = %self.inbox, "a broadcast has resumed");
        }
    }
}
