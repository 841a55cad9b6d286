//! Reads the new entries of a group that is not keyed, over a connection that may block.

use std::time::Duration;

use tokio::time::Instant;

use super::blocking::Reader;
use super::claim::BATCH;
use super::codec::{args, parts, text};
use super::cursor::TopicCursor;
use super::receive::Receiver;
use event_transport::bounds;
use event_transport::error::Result;

pub(super) struct NewEntries {
    reader: Reader,
    /// The topic that is read first when there is no room for all.
    turn: usize,
}

impl NewEntries {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader, turn: 0 }
    }

    /// Reads new entries; waits for them when there are none.
    pub(super) async fn read(
        &mut self,
        receiver: &Receiver,
        topics: &mut [TopicCursor],
        room: usize,
    ) -> Result<()> {
        let count = topics.len();
        if room >= count {
            return self.read_all(receiver, topics, room / count).await;
        }
        // There is no room for one entry of each topic: reads one topic after another, with all the room there is.
        for step in 0..count {
            let at = (self.turn + step) % count;
            if topics[at].maybe {
                self.turn = (at + 1) % count;
                return self.read_one(receiver, &mut topics[at], room).await;
            }
        }
        self.wait_for_any(receiver, topics).await
    }

    async fn read_all(&mut self, receiver: &Receiver, topics: &mut [TopicCursor], each: usize) -> Result<()> {
        let member = &receiver.deliverer.member;
        // A group that is being moved has different names on its topics for a moment.
        let name = topics[0].place.name.clone();
        if topics.iter().any(|topic| topic.place.name != name) {
            return self.read_in_turn(receiver, topics, each).await;
        }
        let block = self.reader.patience(until_look(topics));
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&*name).arg(member.consumer.as_str()).arg("COUNT").arg(each.min(BATCH));
        command.arg("BLOCK").arg(bounds::millis(block).max(1)).arg("STREAMS");
        args(&mut command, topics.iter().map(|topic| &topic.place.log.stream));
        args(&mut command, topics.iter().map(|_| ">"));
        let answer = self.reader.wait(&command, block, &member.signals.wake).await?;
        // The server may have taken the entries at any time during the block; they count from the reply, which cannot
        // be older than a moment.
        let asked = Instant::now();
        for stream in parts(answer) {
            let mut stream = parts(stream).into_iter();
            let key = stream.next().unwrap_or_default();
            let Some(topic) = topics.iter_mut().find(|topic| topic.place.log.stream == text(&key)) else {
                continue;
            };
            receiver.receive(topic, parts(stream.next().unwrap_or_default()), asked).await;
        }
        Ok(())
    }

    /// Reads topics on which the group has different names in Redis: one after another, without blocking.
    async fn read_in_turn(
        &mut self,
        receiver: &Receiver,
        topics: &mut [TopicCursor],
        each: usize,
    ) -> Result<()> {
        for topic in &mut *topics {
            self.read_one(receiver, topic, each).await?;
        }
        if topics.iter().any(|topic| topic.maybe) {
            return Ok(());
        }
        self.wait_for_any(receiver, topics).await
    }

    async fn read_one(&mut self, receiver: &Receiver, topic: &mut TopicCursor, room: usize) -> Result<()> {
        let most = room.min(BATCH);
        let mut command = redis::cmd("XREADGROUP");
        command.arg("GROUP").arg(&*topic.place.name).arg(receiver.deliverer.member.consumer.as_str());
        command.arg("COUNT").arg(most).arg("STREAMS").arg(&topic.place.log.stream).arg(">");
        let asked = Instant::now();
        let answer = self.reader.ask(&command).await?;
        let entries = parts(answer)
            .into_iter()
            .next()
            .and_then(|stream| parts(stream).into_iter().nth(1))
            .map(parts)
            .unwrap_or_default();
        topic.maybe = entries.len() == most;
        receiver.receive(topic, entries, asked).await;
        Ok(())
    }

    /// Waits for new entries without taking them: another member may take them first.
    async fn wait_for_any(&mut self, receiver: &Receiver, topics: &mut [TopicCursor]) -> Result<()> {
        let block = self.reader.patience(until_look(topics));
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(bounds::millis(block).max(1)).arg("STREAMS");
        args(&mut command, topics.iter().map(|topic| &topic.place.log.stream));
        args(&mut command, topics.iter().map(|topic| topic.last));
        let answer = self.reader.wait(&command, block, &receiver.deliverer.member.signals.wake).await?;
        for stream in parts(answer) {
            let mut stream = parts(stream).into_iter();
            let key = stream.next().unwrap_or_default();
            let last = parts(stream.next().unwrap_or_default()).pop().map(parts).unwrap_or_default();
            let id = last.first().and_then(|id| text(id).parse().ok());
            for topic in &mut *topics {
                if topic.place.log.stream == text(&key) {
                    topic.maybe = true;
                    topic.last = id.unwrap_or(topic.last).max(topic.last);
                }
            }
        }
        Ok(())
    }
}

/// The time until the first look at a topic is due.
fn until_look(topics: &[TopicCursor]) -> Duration {
    let next = topics.iter().map(|topic| topic.next_look).min();
    next.map_or(Duration::from_secs(5), |next| next.saturating_duration_since(Instant::now()))
}
