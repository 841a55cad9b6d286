//! Reads the topics in order from the group's position, and restarts there whenever a message is missing.

use super::*;
use crate::transport::nats::keyed::checkpoint;

impl Leader {
    pub(super) fn close_readers(&mut self) {
        self.reading += 1;
        self.opening = false;
        self.replaying = false;
        self.pulls.clear();
        self.doubtful.clear();
        for (stream, consumer) in self.readers.drain(..).filter_map(|reader| reader.source) {
            let connection = self.connection.clone();
            self.connection.tasks.spawn(async move {
                let _ = connection.delete_consumer(&stream, &consumer).await;
            });
        }
    }

    /// Reads everything again from the group's position, after a delay.
    pub(super) fn read_anew(&mut self, after: Duration) {
        self.close_readers();
        self.open_at = None;
        self.open_soon(after);
    }

    pub(super) fn open_soon(&mut self, after: Duration) {
        let at = Instant::now() + after;
        self.open_at = Some(self.open_at.map_or(at, |open| open.min(at)));
    }

    /// Opens topics that are not read yet, when that is due. Returns the time at which to run again.
    pub(super) fn open_topics(&mut self, now: Instant) -> Option<Instant> {
        if self.opening {
            return None;
        }
        if self.open_at? > now {
            return self.open_at;
        }
        self.open_at = None;
        self.opening = true;
        let known = self.readers.iter().map(|reader| reader.topic.clone()).collect();
        let wanted: BTreeMap<SmolStr, Wanted> = self
            .backlog
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
        let reading = self.reading;
        let (connection, group) = (self.connection.clone(), self.member.group.clone());
        let step = open::open(connection, group, self.record.clone(), wanted, known, self.care);
        self.jobs.push(step.map(move |result| Done::Opened { reading, result }).boxed());
        None
    }

    pub(super) fn opened(&mut self, result: Result<Vec<Opened>>) {
        self.opening = false;
        let opened = match result {
            Ok(opened) => opened,
            Err(error) => {
                self.begin_outage(&error.to_string());
                return self.open_later();
            }
        };
        self.open_failures = 0;
        self.care = false;
        if opened.iter().any(|topic| topic.anew) {
            return self.begin_anew(opened.into_iter().filter(|topic| topic.anew));
        }
        for topic in opened {
            self.loaded.insert(topic.topic.clone());
            self.take_in(&topic.topic, topic.open);
            let mark = self.backlog.marks.entry(topic.topic.clone()).or_default();
            mark.next = mark.next.max(topic.next);
            mark.made = topic.made.or(mark.made);
            self.replays_due |= topic.consumer.is_none();
            let source = topic.consumer.map(|consumer| {
                self.pulls.add(Source::new(topic.stream.clone(), consumer.clone(), false));
                (topic.stream, consumer)
            });
            self.readers.push(Reader { topic: topic.topic, source, turn: 1 });
        }
        self.end_outage();
    }

    pub(super) fn open_later(&mut self) {
        self.open_failures = (self.open_failures + 1).min(6);
        let most = 25_u64 << self.open_failures;
        self.read_anew(Duration::from_millis(fastrand::u64(most / 2..=most)));
    }

    pub(super) fn take_in(&mut self, topic: &SmolStr, found: Vec<Found>) {
        for (sequence, message) in found {
            match message {
                Some((message, info)) => self.backlog.accept(topic, sequence, message, info),
                None => {
                    tracing::warn!(
                        group = %self.member.group, topic = %topic, position = sequence,
                        "a message was skipped: its stream no longer has it, it is not from this library, or it cannot be read"
                    );
                    self.backlog.discard(topic, sequence);
                    self.dirty = true;
                }
            }
        }
    }

    /// Pulls as many messages as there is room for. Returns the latest time at which to run again.
    pub(super) fn pull(&mut self) -> Option<Instant> {
        let room = self.backlog.room();
        if room > 0 && self.replays_due && !self.replaying && self.loaded.contains(REPLAYS) {
            self.replays_due = false;
            self.replaying = true;
            let next = self.backlog.marks.get(REPLAYS).map_or(0, |mark| mark.next);
            let room = room.min(64);
            let reading = self.reading;
            let step = open::replays(self.connection.clone(), self.member.group.clone(), next, room);
            self.jobs.push(step.map(move |result| Done::Replays { reading, room, result }).boxed());
        }
        let (wake, silent) = self.pulls.top_up(room);
        if silent {
            self.begin_outage("a pull was not answered");
            self.open_later();
        }
        wake
    }

    pub(super) fn on_message(&mut self, message: async_nats::Message) {
        let mut next = Some(message);
        for looked in 1..=BATCH {
            let Some(message) = next else { return };
            // Clients may set a status header as well; only messages from the server have no reply subject.
            match message.status.filter(|_| message.reply.is_none()) {
                Some(status) => {
                    if let PullStatus::Failed(text) = self.pulls.status(&message, status) {
                        self.begin_outage(&text);
                        self.open_later();
                    }
                }
                None => self.read(message),
            }
            if looked == BATCH {
                return;
            }
            next = self.messages.next().now_or_never().flatten();
        }
    }

    pub(super) fn read(&mut self, message: async_nats::Message) {
        let Some(info) = message.reply.as_ref().and_then(|reply| codec::AckInfo::read(reply)) else { return };
        if self.pulls.received(info.stream, info.consumer, Instant::now()).is_none() {
            return; // of a consumer that is no longer read
        }
        if self.doubtful.is_empty() {
            self.take(message, false);
        } else {
            self.doubtful.push_back(message);
        }
    }

    /// Takes the next message of a topic. `sure` means that the group's record was read after the message arrived.
    fn take(&mut self, message: async_nats::Message, sure: bool) {
        let Some(info) = message.reply.as_ref().and_then(|reply| codec::AckInfo::read(reply)) else { return };
        let reader = self.readers.iter_mut().find(|reader| {
            reader
                .source
                .as_ref()
                .is_some_and(|(stream, name)| stream == info.stream && name == info.consumer)
        });
        let Some(reader) = reader else { return };
        if info.turn != reader.turn {
            tracing::debug!(group = %self.member.group, turn = info.turn, "messages were lost in transit");
            return self.read_anew(Duration::ZERO);
        }
        let subject = codec::subject(&self.connection.names, &message.subject);
        let wanted = subject.as_ref().map(|subject| self.record.wants(subject, info.sequence));
        if wanted == Some(false) && !sure {
            // Filters that changed in the meantime may match it.
            self.doubtful.push_back(message);
            return self.reload();
        }
        reader.turn += 1;
        let topic = reader.topic.clone();
        if self.backlog.marks.get(&topic).is_some_and(|mark| info.sequence < mark.next) {
            return;
        }
        let Some(subject) = subject else {
            crate::transport::nats::fetch::foreign(&self.member.group, &message.subject, info.sequence);
            return self.backlog.discard(&topic, info.sequence);
        };
        if wanted == Some(false) {
            self.backlog.discard(&topic, info.sequence);
        } else if self.again.get(&topic).is_some_and(|again| again.took(&subject, info.sequence))
            || self.backlog.is_open(&topic, info.sequence)
        {
            self.backlog.skip(&topic, info.sequence);
        } else {
            let headers = message.headers.as_ref();
            let decoded = codec::message(headers, message.payload.clone(), subject, || info.id());
            let about = open::about(info.sequence, info.published_at());
            self.backlog.accept(&topic, info.sequence, decoded, about);
        }
    }

    /// Takes or skips the doubtful messages, after the group's record was read again.
    pub(super) fn judge(&mut self) {
        let covered = std::mem::take(&mut self.covered);
        for (at, message) in std::mem::take(&mut self.doubtful).into_iter().enumerate() {
            if self.doubtful.is_empty() {
                self.take(message, at < covered);
            } else {
                self.doubtful.push_back(message);
            }
        }
    }

    /// Restarts topics whose streams were deleted and created again: marks of the earlier streams are void, and the
    /// new ones are read from the beginning.
    fn begin_anew(&mut self, topics: impl Iterator<Item = Opened>) {
        let mut marks = std::mem::take(&mut self.backlog.marks);
        for Opened { topic, made, .. } in topics {
            tracing::error!(
                group = %self.member.group, %topic,
                "the topic's stream was deleted and created again; it is read from its beginning"
            );
            marks.insert(topic, Mark { made, ..Mark::default() });
        }
        self.void();
        self.backlog.marks = marks;
        self.dirty = true;
        self.read_anew(Duration::ZERO);
    }

    /// Deletes settled replays from the server.
    pub(super) fn purge_replays(&mut self) {
        let floor = self.backlog.marks.get(REPLAYS).map_or(0, Mark::floor);
        if floor > self.replays_purged.max(1) && !self.dirty {
            self.replays_purged = floor;
            let (connection, group) = (self.connection.clone(), self.member.group.clone());
            self.connection.tasks.spawn(async move {
                let (work, subject) = (connection.names.work(), connection.names.replayed(&group));
                let _ = connection.purge_below(&work, &subject, floor).await;
            });
        }
    }

    pub(super) fn reload(&mut self) {
        if std::mem::replace(&mut self.reloading, true) {
            self.reload_again = true;
            return;
        }
        self.covered = self.doubtful.len();
        let (connection, group) = (self.connection.clone(), self.member.group.clone());
        let known = self.record.clone();
        self.jobs.push(async move { Done::Reloaded(connection.standing(&group, &known).await) }.boxed());
    }

    /// Applies a newly read record of the group.
    pub(super) fn change(&mut self, record: Record) {
        let (moved, changes) = (record.epoch != self.record.epoch, self.record.changes);
        let other = record.filters != self.record.filters || record.changes != changes;
        self.record = record;
        if moved {
            self.marks.clear();
        }
        if !self.leads() {
            return;
        }
        if moved {
            // The group was moved, so everything held here is void.
            self.void();
            self.dirty = true;
        } else if other {
            let again = checkpoint::rewind(&mut self.backlog.marks, changes, &self.record);
            self.again.extend(again);
            self.dirty = true;
        }
        if moved || other {
            self.read_anew(Duration::ZERO);
        } else {
            self.open_soon(Duration::ZERO);
        }
    }
}
