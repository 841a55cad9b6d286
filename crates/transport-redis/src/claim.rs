//! Takes the entries that are not new: due retries, replayed dead letters, and entries that dead members left.
//!
//! A notification announces most of them. The periodic look finds the others: a script surveys many topics at once, and
//! only topics with pending entries or replays are looked at one by one.

use std::time::Duration;

use tokio::time::Instant;

use super::codec::{self, number, parts, text};
use super::cursor::TopicCursor;
use super::error::reply;
use super::member::Member;
use super::receive::Receiver;
use super::scripts;
use event_transport::bounds;
use event_transport::error::Result;

/// Maximum number of entries taken at once.
pub(super) const BATCH: usize = 500;
/// Maximum number of topics that one script surveys.
const TOPICS: usize = 200;
/// Bounds of the time between two looks at a topic: with entries that a dead member may have left, and without.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);
const LONGEST_QUIET: Duration = Duration::from_secs(30);

/// Looks at the topics whose time has come, and takes as many entries as there is room for.
pub(super) async fn look(receiver: &Receiver, topics: &mut [TopicCursor]) -> Result<()> {
    let now = Instant::now();
    if topics.iter().all(|topic| topic.next_look > now) {
        return Ok(());
    }
    survey(&receiver.deliverer.member, topics, now).await?;
    for topic in topics.iter_mut().filter(|topic| topic.busy && topic.next_look <= now) {
        let room = receiver.deliverer.room();
        if room == 0 {
            break;
        }
        take(receiver, topic, room).await?;
    }
    Ok(())
}

/// Finds the topics that may have entries to take. The others are looked at again after a whole lease: an entry that is
/// delivered from now on cannot be abandoned before.
async fn survey(member: &Member, topics: &mut [TopicCursor], now: Instant) -> Result<()> {
    // Topics that are due a little later are included, so that many topics share a survey.
    let soon = now + member.lease / 8;
    let mut quiet: Vec<_> =
        topics.iter_mut().filter(|topic| !topic.busy && topic.next_look <= soon).collect();
    if quiet.is_empty() {
        return Ok(());
    }
    let mut pipeline = redis::Pipeline::new();
    for some in quiet.chunks(TOPICS) {
        let streams =
            |topic: &'_ &mut TopicCursor| [topic.place.log.stream.clone(), topic.place.replay.stream.clone()];
        let keys: Vec<String> = some.iter().flat_map(streams).collect();
        let mut command = scripts::SURVEY.on(&keys.iter().map(String::as_str).collect::<Vec<_>>());
        codec::args(&mut command, some.iter().map(|topic| &*topic.place.name));
        pipeline.add_command(command);
    }
    pipeline.cmd("ZRANGE").arg(member.client.keys.members(member.group.as_str())).arg(0).arg(-1);
    let mut replies = member.client.connection.run(&pipeline).await?;
    let members = parts(reply(replies.pop().unwrap_or_default())?);
    let lease = members.iter().filter_map(|name| lease_of(text(name))).fold(member.lease, Duration::min);
    let later = now + lease.clamp(SHORTEST, LONGEST_QUIET);
    for (some, value) in quiet.chunks_mut(TOPICS).zip(replies) {
        for (topic, busy) in some.iter_mut().zip(parts(reply(value)?)) {
            topic.busy = number(&busy) == 1;
            topic.next_look = if topic.busy { now } else { later };
        }
    }
    Ok(())
}

/// The lease in the name of a consumer.
fn lease_of(consumer: &str) -> Option<Duration> {
    let (_, millis) = consumer.rsplit_once('.')?;
    millis.parse().ok().map(Duration::from_millis)
}

/// Takes due retries and entries that dead members left, of the log and of the replays.
async fn take(receiver: &Receiver, topic: &mut TopicCursor, room: usize) -> Result<()> {
    let deliverer = &receiver.deliverer;
    let member = &deliverer.member;
    let place = &topic.place;
    let mut next = (member.lease / 4).clamp(SHORTEST, LONGEST);
    let mut more = false;
    for (source, reads) in [(&place.log, 0), (&place.replay, 1)] {
        let room = room.min(deliverer.room()).min(BATCH);
        let mut command = scripts::TAKE.on(&[&source.stream, &source.due, &source.notes]);
        command.arg(&*place.name).arg(member.consumer.as_str()).arg(room);
        command.arg(bounds::millis(member.lease)).arg(reads);
        let asked = Instant::now();
        let mut answer = parts(member.client.connection.ask(command).await?).into_iter();
        if let Ok(wait) = u64::try_from(number(&answer.next().unwrap_or_default())) {
            next = next.min(Duration::from_millis(wait));
            more = true;
        }
        let taken = parts(answer.next().unwrap_or_default());
        if taken.len() == room {
            next = Duration::ZERO;
            more = true;
        }
        let entries = taken.into_iter().filter_map(|value| {
            let mut value = parts(value).into_iter();
            let id = text(&value.next()?).parse().ok()?;
            let attempt = number(&value.next()?) as u32;
            Some((codec::read_fields(id, parts(value.next()?), &source.topic), attempt))
        });
        receiver.hand_out(place, source, &place.name, entries.collect(), asked);
    }
    topic.busy = more;
    topic.next_look = Instant::now() + next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_consumer_has_its_lease_in_its_name() {
        assert_eq!(lease_of("host-1-2.30000"), Some(Duration::from_secs(30)));
        assert_eq!(lease_of("host.local-1"), None);
        assert_eq!(lease_of("~"), None);
    }
}
