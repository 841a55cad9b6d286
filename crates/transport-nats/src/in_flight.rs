//! The messages that a member leases, the end of each lease, and its recent settlements.

use std::collections::VecDeque;
use std::sync::Arc;

use async_nats::Subject as NatsSubject;
use slab::Slab;
use tokio::time::Instant;

use super::codec::AckInfo;
use super::source::Source;
use event_transport::delivery::{DeliveryInfo, Token};
use event_transport::message::Message;

/// The messages in flight at a member.
#[derive(Default)]
pub(super) struct InFlight {
    entries: Slab<LeasedMessage>,
    generation: u32,
    /// The last finally settled messages, by source, sequence and time of publication.
    settled: VecDeque<(usize, u64, i64)>,
}

/// State of a received message according to the messages in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The server has not delivered it before.
    Never,
    /// It may be in flight at this member.
    Perhaps,
    /// It was finally settled.
    Settled,
}

/// Number of settled messages that are remembered.
const REMEMBERED: usize = 1024;

/// A message that this member leases.
pub(super) struct LeasedMessage {
    pub(super) generation: u32,
    pub(super) place: Place,
    /// Subject that its settlement is sent to.
    pub(super) ack: NatsSubject,
    /// Delivery count of the server.
    pub(super) delivered: u64,
    pub(super) message: Arc<Message>,
    pub(super) info: DeliveryInfo,
    /// Unix milliseconds of the first attempt.
    pub(super) first_ms: i64,
    /// Time until which the lease is certain.
    pub(super) lease_until: Instant,
    /// Delivered to the consumer, or in its queue.
    pub(super) out: bool,
    /// Its attempts are recorded in the state stream.
    pub(super) recorded: bool,
    /// It may already be in flight at this member.
    pub(super) again: bool,
}

/// The place of a message on the server.
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    pub(super) sequence: u64,
    /// Time of its storage in Unix nanoseconds: a stream that is created again has other messages at the same
    /// sequences.
    pub(super) time: i64,
}

impl Place {
    fn is_in(&self, source: &Source, sequence: u64) -> bool {
        self.sequence == sequence && self.source.stream == source.stream
    }
}

impl InFlight {
    /// Adds a message.
    pub(super) fn insert(&mut self, mut entry: LeasedMessage) -> Token {
        self.generation = self.generation.wrapping_add(1);
        entry.generation = self.generation;
        u64::from(self.generation) << 32 | self.entries.insert(entry) as u64
    }

    fn index(token: Token) -> (usize, u32) {
        ((token & u64::from(u32::MAX)) as usize, (token >> 32) as u32)
    }

    pub(super) fn get(&mut self, token: Token) -> Option<&mut LeasedMessage> {
        let (index, generation) = Self::index(token);
        self.entries.get_mut(index).filter(|entry| entry.generation == generation)
    }

    /// Removes a message that is settled or lost.
    pub(super) fn remove(&mut self, token: Token) -> Option<LeasedMessage> {
        let (index, generation) = Self::index(token);
        if self.entries.get(index)?.generation != generation {
            return None;
        }
        Some(self.entries.remove(index))
    }

    /// Records that a message was finally settled.
    pub(super) fn remember(&mut self, place: &Place) {
        if self.settled.len() == REMEMBERED {
            self.settled.pop_front();
        }
        self.settled.push_back((Arc::as_ptr(&place.source) as usize, place.sequence, place.time));
    }

    /// Returns the state of a received message. An acknowledgement may be lost with its connection, and servers of
    /// 2.9 deliver a message again, as if for the first time, when there was no open pull for its redelivery.
    pub(super) fn seen(&mut self, source: &Arc<Source>, info: &AckInfo<'_>) -> Seen {
        if source.is_first(info) {
            return Seen::Never;
        }
        let settled = self.settled.contains(&(Arc::as_ptr(source) as usize, info.sequence, info.time));
        if settled { Seen::Settled } else { Seen::Perhaps }
    }

    /// Returns the message with this sequence, if it is in flight. Call it only for a repeated delivery.
    pub(super) fn at(&mut self, source: &Source, sequence: u64) -> Option<&mut LeasedMessage> {
        let mut entries = self.entries.iter_mut().map(|(_, entry)| entry);
        entries.find(|entry| entry.place.is_in(source, sequence))
    }

    pub(super) fn iter(&mut self) -> impl Iterator<Item = (Token, &mut LeasedMessage)> {
        self.entries
            .iter_mut()
            .map(|(index, entry)| (u64::from(entry.generation) << 32 | index as u64, entry))
    }

    /// Returns the number of messages delivered to consumers.
    pub(super) fn out(&self) -> u64 {
        self.entries.iter().filter(|(_, entry)| entry.out).count() as u64
    }

    /// Drops everything because the group was moved or deleted.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.settled.clear();
    }
}

impl LeasedMessage {
    /// Returns whether the message has expired. A replayed message does not expire.
    pub(super) fn is_expired(&self) -> bool {
        !self.info.replayed && self.message.expires_at.is_some_and(|at| at <= jiff::Timestamp::now())
    }
}
