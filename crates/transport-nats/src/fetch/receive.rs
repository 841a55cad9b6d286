//! Processes received messages: decodes each one, determines its attempt, and starts its lease.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::sources::Sources;
use crate::attempts::{self, Attempt};
use crate::client::Client;
use crate::codec::{self, ACK, AckInfo};
use crate::in_flight::{LeasedMessage, Place, Seen};
use crate::member::Member;
use crate::skipped::foreign;
use crate::source::Source;
use crate::{dead_letters, kv, poison};
use event_transport::delivery::DeliveryInfo;
use event_transport::message::Position;
use event_transport::telemetry::count_expired;

/// Result of reading a received message.
pub(super) enum Received {
    /// The message is for this member and leased.
    LeasedMessage(LeasedMessage),
    /// The group's record, as it was last read, does not match the message.
    Unmatched(Arrived),
    Nothing,
}

/// A message that arrived for this member.
pub(super) struct Arrived {
    source: Arc<Source>,
    seen: Seen,
    pub(super) message: async_nats::Message,
}

/// How to treat a message that the group's filters do not match.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwanted {
    /// Return it as unmatched: the filters may have changed since they were read.
    Recheck,
    /// Acknowledge it: the filters were read after it arrived.
    Skip,
    /// Accept it anyway, to release it later.
    Take,
}

/// Stores a message with an invalid subject as a dead letter: no pattern matches it, but it must not be lost
/// unnoticed.
fn dead_letter(
    member: &Arc<Member>,
    source: &Arc<Source>,
    info: &AckInfo<'_>,
    message: &async_nats::Message,
) {
    let why = format!(
        "its subject {:?} is none of this library's, which takes tokens of a-z 0-9 _ -",
        message.subject.as_str()
    );
    let (member, source) = (member.clone(), source.clone());
    let (sequence, time) = (info.sequence, info.published_at());
    let subject = poison::topic_of(&member.client.names, &source.stream);
    let copy = codec::message(message.headers.as_ref(), message.payload.clone(), subject, || info.id());
    tokio::spawn(async move {
        if let Err(error) = poison::dead_letter(&member, &source, sequence, time, copy, &why).await {
            // The message is delivered again when its lease ends.
            tracing::debug!(%error, "a message of another client could not be stored as a dead letter");
        }
    });
}

/// Turns a message into a leased entry. Returns `Nothing` when this member already holds or has settled it.
pub(super) async fn read(
    member: &Arc<Member>,
    sources: &mut Sources,
    message: async_nats::Message,
    now: Instant,
    unwanted: Unwanted,
) -> Received {
    let Some(reply) = message.reply.clone() else { return Received::Nothing };
    let Some(info) = AckInfo::read(&reply) else { return Received::Nothing };
    let Some(source) = sources.pulls.received(info.stream, info.consumer, now) else {
        return Received::Nothing;
    };
    let seen = {
        let mut in_flight = member.in_flight();
        let seen = in_flight.seen(&source, &info);
        // The renewal was late, but no other member received the message: the handler here continues under the
        // new lease.
        if seen == Seen::Perhaps
            && let Some(entry) = in_flight.at(&source, info.sequence)
            && entry.place.time == info.time
        {
            entry.ack = reply.clone();
            entry.delivered = info.delivered;
            entry.lease_until = now + member.certain();
            return Received::Nothing;
        }
        seen
    };
    if seen == Seen::Settled {
        member.client.outbound.send_bare(reply, None, ACK);
        return Received::Nothing;
    }
    decode(member, sources, Arrived { source, seen, message }, &info, now, unwanted).await
}

/// Checks a message against the group's filters, and decodes it when they match.
pub(super) async fn decode(
    member: &Arc<Member>,
    sources: &mut Sources,
    arrived: Arrived,
    info: &AckInfo<'_>,
    now: Instant,
    unwanted: Unwanted,
) -> Received {
    let Arrived { source, seen, message } = arrived;
    let Some(reply) = message.reply.clone() else { return Received::Nothing };
    let outbound = &member.client.outbound;
    let mut own = None;
    if !source.copies {
        let names = &member.client.names;
        let known = sources.subjects.read(names, &sources.record, &message.subject, info.sequence);
        let Some((subject, wanted)) = known else {
            dead_letter(member, &source, info, &message);
            return Received::Nothing;
        };
        match unwanted {
            _ if wanted => {}
            Unwanted::Recheck => return Received::Unmatched(Arrived { source, seen, message }),
            Unwanted::Skip => {
                outbound.send_bare(reply, None, ACK);
                return Received::Nothing;
            }
            Unwanted::Take => {}
        }
        own = Some(subject);
    }
    let attempt = if info.delivered > 1 { attempts(&member.client, &source, info).await } else { None };
    let (position, published_at, first_ms) = (
        Position(u128::from(info.sequence)),
        info.published_at(),
        attempt.as_ref().map_or_else(|| Timestamp::now().as_millisecond(), |attempt| attempt.first),
    );
    let mut told = DeliveryInfo::new(number(info, attempt.as_ref()));
    told.position = Some(position);
    told.published_at = Some(published_at);
    let decoded = match own {
        None => {
            let headers = message.headers.as_ref();
            headers.and_then(|headers| dead_letters::copy(headers, message.payload.clone(), &mut told))
        }
        Some(subject) => {
            Some(codec::message(message.headers.as_ref(), message.payload, subject, || info.id()))
        }
    };
    let Some(decoded) = decoded else {
        foreign(&member.group, &message.subject, info.sequence);
        outbound.send_bare(reply, None, ACK);
        return Received::Nothing;
    };
    let entry = LeasedMessage {
        generation: 0,
        place: Place { source, sequence: info.sequence, time: info.time },
        ack: reply,
        delivered: info.delivered,
        message: Arc::new(decoded),
        info: told,
        first_ms,
        lease_until: now + member.certain(),
        out: false,
        recorded: attempt.is_some(),
        again: seen == Seen::Perhaps,
    };
    if entry.is_expired() {
        count_expired("nats", 1);
        outbound.send_bare(entry.ack, None, ACK);
        return Received::Nothing;
    }
    Received::LeasedMessage(entry)
}

async fn attempts(client: &Client, source: &Source, info: &AckInfo<'_>) -> Option<Attempt> {
    let subject = attempts::subject(&client.names, source, info.sequence);
    match kv::read::<Attempt>(client, &subject).await {
        Ok(stored) => stored.map(|stored| stored.value),
        Err(error) => {
            tracing::debug!(%error, "the attempts of a message could not be read; its deliveries are counted instead");
            None
        }
    }
}

/// Returns the attempt number of a delivery. Releases on record do not count.
fn number(info: &AckInfo<'_>, attempt: Option<&Attempt>) -> u32 {
    let (delivered, attempts) = attempt.map_or((0, 0), |attempt| (attempt.delivered, attempt.attempts));
    let since = u32::try_from(info.delivered.saturating_sub(delivered)).unwrap_or(u32::MAX);
    attempts.saturating_add(since).max(1)
}
