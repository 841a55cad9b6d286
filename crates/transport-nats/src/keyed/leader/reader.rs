//! Reads the topics in order from the group's position, and restarts there whenever a message is missing.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::FutureExt;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::doubtful::Doubtful;
use super::jobs::{Done, Jobs};
use super::opening::Opening;
use super::replays::Replays;
use super::writer::CheckpointWriter;
use crate::codec::{self, AckInfo};
use crate::group::Record;
use crate::group::consumer;
use crate::keyed::backlog::Backlog;
use crate::keyed::checkpoint::{Again, REPLAYS};
use crate::keyed::member::KeyedMember;
use crate::keyed::open::{self, Fetched, Opened, Wanted};
use crate::pull::{PullStatus, Pulls};
use crate::skipped::foreign;
use crate::source::Source;
use event_transport::error::Result;

pub(super) struct StreamReader {
    member: Arc<KeyedMember>,
    pulls: Pulls,
    topics: Vec<TopicReader>,
    /// Number of the set of topics. A job that was started for an earlier one is void.
    number: u64,
    /// Topics whose open messages have been loaded.
    loaded: HashSet<SmolStr>,
    /// Ranges that are read a second time because filters changed.
    again: BTreeMap<SmolStr, Again>,
    doubtful: Doubtful<Message>,
    pub(super) opening: Opening,
    pub(super) replays: Replays,
}

struct TopicReader {
    topic: SmolStr,
    /// Stream and consumer; `None` for replays, which are fetched one by one.
    source: Option<(String, String)>,
    /// Consumer sequence that the next message must have.
    turn: u64,
}

/// Result of processing a received message.
pub(super) enum Received {
    Taken,
    /// The group's record has to be read again, to decide about the message.
    Doubtful,
    /// A pull failed for this reason. The reader restarts later.
    Failed(String),
}

impl StreamReader {
    /// Returns a reader that receives messages under `inbox`.
    pub(super) fn new(member: Arc<KeyedMember>, inbox: String) -> Self {
        Self {
            pulls: Pulls::new(member.client.outbound.clone(), inbox),
            topics: Vec::new(),
            number: 0,
            loaded: HashSet::new(),
            again: BTreeMap::new(),
            doubtful: Doubtful::default(),
            opening: Opening::new(&member.client),
            replays: Replays::new(member.clone()),
            member,
        }
    }

    /// Returns whether a job was started for the present set of topics.
    pub(super) fn is_current(&self, number: u64) -> bool {
        self.number == number
    }

    /// Stops reading, and deletes the consumers.
    pub(super) fn close(&mut self) {
        self.number += 1;
        self.opening.clear();
        self.replays.forget();
        self.pulls.clear();
        self.doubtful.clear();
        for (stream, consumer) in self.topics.drain(..).filter_map(|reader| reader.source) {
            let client = self.member.client.clone();
            self.member.client.tasks.spawn(async move {
                let _ = consumer::delete(&client, &stream, &consumer).await;
            });
        }
    }

    /// Reads everything again from the group's position, after a delay.
    pub(super) fn read_anew(&mut self, after: Duration) {
        self.close();
        self.opening.soon(after);
    }

    /// Reads everything again after a pause, because of a failure.
    pub(super) fn read_later(&mut self) {
        let pause = self.opening.back_off();
        self.read_anew(pause);
    }

    /// Forgets the topics that were loaded. `again` are ranges that are read a second time.
    pub(super) fn forget(&mut self, again: BTreeMap<SmolStr, Again>) {
        self.loaded.clear();
        self.again = again;
    }

    /// Adds ranges that are read a second time because filters changed.
    pub(super) fn repeat(&mut self, again: BTreeMap<SmolStr, Again>) {
        self.again.extend(again);
    }

    /// Opens topics that are not read yet, when that is due. Returns the time at which to run again.
    pub(super) fn open_topics(
        &mut self,
        now: Instant,
        record: &Record,
        backlog: &Backlog,
        jobs: &mut Jobs,
    ) -> Option<Instant> {
        let at = self.opening.due()?;
        if at > now {
            return Some(at);
        }
        self.opening.begin();
        let known = self.topics.iter().map(|reader| reader.topic.clone()).collect();
        let wanted: BTreeMap<SmolStr, Wanted> = backlog
            .marks
            .iter()
            .map(|(topic, mark)| {
                let missing = if self.loaded.contains(topic) {
                    Vec::new()
                } else {
                    mark.open.keys().copied().collect()
                };
                (topic.clone(), Wanted { made: mark.made, next: mark.next, missing })
            })
            .collect();
        let reading = self.number;
        let (dead_letters, group) = (self.member.dead_letters.clone(), self.member.group.clone());
        let job = open::open(dead_letters, group, record.clone(), wanted, known, self.opening.care());
        jobs.start(job.map(move |result| Done::Opened { reading, result }));
        None
    }

    /// Reads the topics that were opened. After a failure they are opened again later. Returns the topics whose streams
    /// were deleted and created again; if there are any, nothing is read yet.
    pub(super) fn on_opened(
        &mut self,
        result: Result<Vec<Opened>>,
        backlog: &mut Backlog,
        writer: &mut CheckpointWriter,
    ) -> Result<Vec<Opened>> {
        self.opening.ended();
        let opened = result.inspect_err(|_| self.read_later())?;
        self.opening.succeeded();
        if opened.iter().any(|topic| topic.anew) {
            return Ok(opened.into_iter().filter(|topic| topic.anew).collect());
        }
        for topic in opened {
            self.loaded.insert(topic.topic.clone());
            self.take_fetched(&topic.topic, topic.open, backlog, writer);
            let mark = backlog.marks.entry(topic.topic.clone()).or_default();
            mark.next = mark.next.max(topic.next);
            mark.made = topic.made.or(mark.made);
            if topic.consumer.is_none() {
                self.replays.expect();
            }
            let source = topic.consumer.map(|consumer| {
                self.pulls.add(Source::new(topic.stream.clone(), consumer.clone(), false));
                (topic.stream, consumer)
            });
            self.topics.push(TopicReader { topic: topic.topic, source, turn: 1 });
        }
        Ok(Vec::new())
    }

    /// Takes the replays that were fetched, at most `room`.
    pub(super) fn on_replays(
        &mut self,
        room: usize,
        result: Result<Vec<Fetched>>,
        backlog: &mut Backlog,
        writer: &mut CheckpointWriter,
    ) -> Result<()> {
        self.replays.fetched(room, &result);
        self.take_fetched(&SmolStr::new_static(REPLAYS), result?, backlog, writer);
        Ok(())
    }

    /// Takes messages that were fetched one by one.
    fn take_fetched(
        &self,
        topic: &SmolStr,
        found: Vec<Fetched>,
        backlog: &mut Backlog,
        writer: &mut CheckpointWriter,
    ) {
        for (sequence, message) in found {
            match message {
                Some((message, info)) => backlog.accept(topic, sequence, message, info),
                None => {
                    tracing::warn!(
                        group = %self.member.group, topic = %topic, position = sequence,
                        "a message was skipped: its stream no longer has it, it is not from this library, or it cannot be read"
                    );
                    backlog.discard(topic, sequence);
                    writer.mark_dirty();
                }
            }
        }
    }

    /// Pulls as many messages as there is room for. Returns the latest time at which to run again, and whether a pull
    /// was not answered; then the reader restarts later.
    pub(super) fn pull(&mut self, backlog: &Backlog, jobs: &mut Jobs) -> (Option<Instant>, bool) {
        let room = backlog.room();
        if self.loaded.contains(REPLAYS) {
            self.replays.fetch(room, self.number, backlog, jobs);
        }
        let (wake, silent) = self.pulls.top_up(room);
        if silent {
            self.read_later();
        }
        (wake, silent)
    }

    /// Processes a received message.
    pub(super) fn on_message(
        &mut self,
        message: Message,
        record: &Record,
        backlog: &mut Backlog,
    ) -> Received {
        // Clients may set a status header as well; only messages from the server have no reply subject.
        if let Some(status) = message.status.filter(|_| message.reply.is_none()) {
            let PullStatus::Failed(text) = self.pulls.status(&message, status) else {
                return Received::Taken;
            };
            self.read_later();
            return Received::Failed(text);
        }
        let Some(info) = ack_info(&message) else { return Received::Taken };
        if self.pulls.received(info.stream, info.consumer, Instant::now()).is_none() {
            return Received::Taken; // of a consumer that is no longer read
        }
        if !self.doubtful.is_empty() {
            self.doubtful.push(message);
            return Received::Taken;
        }
        if self.take(&message, &info, false, record, backlog) {
            return Received::Taken;
        }
        self.doubtful.push(message);
        Received::Doubtful
    }

    /// Takes the next message of a topic. `sure` means that the group's record was read after the message arrived.
    /// Returns `false` when the record has to be read first.
    fn take(
        &mut self,
        message: &Message,
        info: &AckInfo<'_>,
        sure: bool,
        record: &Record,
        backlog: &mut Backlog,
    ) -> bool {
        let reader = self.topics.iter_mut().find(|reader| {
            reader
                .source
                .as_ref()
                .is_some_and(|(stream, name)| stream == info.stream && name == info.consumer)
        });
        let Some(reader) = reader else { return true };
        if info.turn != reader.turn {
            tracing::debug!(group = %self.member.group, turn = info.turn, "messages were lost in transit");
            self.read_anew(Duration::ZERO);
            return true;
        }
        let subject = codec::subject(&self.member.client.names, &message.subject);
        let wanted = subject.as_ref().map(|subject| record.wants(subject, info.sequence));
        if wanted == Some(false) && !sure {
            // Filters that changed in the meantime may match it.
            return false;
        }
        reader.turn += 1;
        let topic = &reader.topic;
        if backlog.marks.get(topic).is_some_and(|mark| info.sequence < mark.next) {
            return true;
        }
        let Some(subject) = subject else {
            foreign(&self.member.group, &message.subject, info.sequence);
            backlog.discard(topic, info.sequence);
            return true;
        };
        if wanted == Some(false) {
            backlog.discard(topic, info.sequence);
        } else if self.again.get(topic).is_some_and(|again| again.took(&subject, info.sequence))
            || backlog.is_open(topic, info.sequence)
        {
            backlog.skip(topic, info.sequence);
        } else {
            let headers = message.headers.as_ref();
            let decoded = codec::message(headers, message.payload.clone(), subject, || info.id());
            let about = open::about(info.sequence, info.published_at());
            backlog.accept(topic, info.sequence, decoded, about);
        }
        true
    }

    /// Notes that a read of the group's record begins.
    pub(super) fn cover_doubtful(&mut self) {
        self.doubtful.cover();
    }

    pub(super) fn has_doubtful(&self) -> bool {
        !self.doubtful.is_empty()
    }

    /// Takes or skips the doubtful messages, after the group's record was read again. Returns whether some are left, for
    /// which the record has to be read once more.
    pub(super) fn judge(&mut self, record: &Record, backlog: &mut Backlog) -> bool {
        for (message, sure) in self.doubtful.take() {
            let Some(info) = ack_info(&message) else { continue };
            if self.has_doubtful() || !self.take(&message, &info, sure, record, backlog) {
                self.doubtful.push(message);
            }
        }
        self.has_doubtful()
    }
}

/// Returns the fields of a message's reply subject; `None` when no consumer has delivered it.
fn ack_info(message: &Message) -> Option<AckInfo<'_>> {
    message.reply.as_ref().and_then(|reply| AckInfo::read(reply))
}
