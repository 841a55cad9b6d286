//! Handles the deliveries of one member from their arrival to their settlement: decides which of them become ready, are
//! copied, or become dead letters, and carries out each settlement.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use lapin::message::Delivery as Arrival;
use tokio::time::Instant;

use super::acks::Acks;
use super::client::Client;
use super::codec::{self, Facts};
use super::copies::{Copied, Copies};
use super::delay_queues;
use super::handshake::Version;
use super::journal::Journal;
use super::ledger::{Item, Ledger, Next};
use super::queries::Holding;
use super::session::Session;
use super::settle::{Asker, Settler};
use event_transport::Subscribe;
use event_transport::confirm::Answer;
use event_transport::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settlement, Token, lease_lost};
use event_transport::error::{Error, Result};
use event_transport::message::Message;
use event_transport::subject::{Group, Subject};
use event_transport::subscription::Feed;
use event_transport::telemetry::count_expired;

/// Pause before another try to store a copy of a keyed message.
const AGAIN: Duration = Duration::from_secs(1);

/// The deliveries of one member.
pub(super) struct Deliveries {
    client: Arc<Client>,
    group: Group,
    keyed: bool,
    lease: Duration,
    settler: Arc<Settler>,
    ledger: Ledger,
    pub(super) copies: Copies,
    pub(super) journal: Journal,
    /// Number of deliveries that ever arrived.
    seen: u64,
    /// The subscription has stopped: nothing is delivered to consumers any more.
    stopping: bool,
}

impl Deliveries {
    pub(super) fn new(
        client: Arc<Client>,
        group: Group,
        spec: &Subscribe,
        settler: Arc<Settler>,
        copies: Copies,
        journal: Journal,
    ) -> Self {
        Self {
            client,
            group,
            keyed: spec.keyed,
            lease: spec.lease,
            settler,
            ledger: Ledger::new(spec.keyed),
            copies,
            journal,
            seen: 0,
            stopping: false,
        }
    }

    /// Handles a delivery of the broker.
    pub(super) async fn receive(&mut self, session: &mut Session, arrival: Arrival) {
        self.seen += 1;
        if !session.accept(&arrival) {
            return;
        }
        let Arrival { delivery_tag: tag, redelivered, routing_key, properties, data, .. } = arrival;
        let payload = Bytes::from(data);
        let read = match codec::read(routing_key.as_str(), &properties, payload.clone()) {
            Ok(read) => read,
            Err(error) => return self.undecodable(tag, routing_key.as_str(), payload, &error),
        };
        if self.keyed && (redelivered || read.returns > 0) {
            self.journal.load(&mut self.ledger.notes).await;
        }
        let named = read.named;
        let item = self.ledger.item(tag, read);
        if self.stopping && !self.keyed {
            return self.release(&mut session.acks, item);
        }
        if let Some(left) = delay_queues::left(item.facts.due) {
            if delay_queues::tier(left).is_some() {
                let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
                self.copies.copy(item, facts, Duration::ZERO, None);
            } else {
                self.ledger.keep_until_due(item, left);
            }
            return;
        }
        // The id must be the same in each delivery, so a message without an id is stored again, as a copy with an id,
        // before any handler sees it. A message with a key keeps its place instead, because its order is more
        // important.
        if !(named || self.keyed && item.message.key.is_some()) {
            let published_at = item.facts.published_at.or_else(|| Some(Timestamp::now()));
            let facts = Facts { attempt: item.attempt, published_at, ..item.facts.clone() };
            return self.copies.copy(item, facts, Duration::ZERO, None);
        }
        self.ledger.line_up(item);
    }

    /// Handles a foreign message that cannot be decoded: it becomes a dead letter with its original bytes.
    fn undecodable(&mut self, tag: u64, routing_key: &str, payload: Bytes, error: &Error) {
        let subject = Subject::new("foreign").expect("a valid subject");
        let message = Arc::new(Message::new(subject, "application/octet-stream", payload));
        let item = Item { tag, message, facts: Facts::default(), attempt: 1 };
        let rejection = Rejection::new(
            Reason::Undecodable,
            format!("the routing key {routing_key:?} is not a valid subject: {error}"),
        );
        self.copies.dead_letter(item, rejection, None);
    }

    /// Delivers messages as far as consumers have room.
    pub(super) fn hand_out(&mut self, feed: &Feed, acks: &mut Acks) {
        if self.stopping {
            return;
        }
        loop {
            match self.ledger.next() {
                Next::Expired(item) => {
                    count_expired("rabbitmq", 1);
                    acks.settle(item.tag, None);
                    self.ledger.finish(&item);
                }
                Next::Ready => {
                    let Some(slot) = feed.try_slot() else { return };
                    let Some((token, item)) = self.ledger.deliver() else { return };
                    let mut info = DeliveryInfo::new(item.attempt);
                    info.published_at = item.facts.published_at;
                    info.replayed = item.facts.replayed;
                    feed.push(Delivery::new(item.message.clone(), info, self.settler.clone(), token, slot));
                }
                Next::None => return,
            }
        }
    }

    /// Whether messages wait for a consumer to have room.
    pub(super) fn waits_for_room(&self) -> bool {
        self.ledger.has_ready() && !self.stopping
    }

    pub(super) fn settle(
        &mut self,
        acks: &mut Acks,
        token: Token,
        settlement: Settlement,
        answer: Answer<()>,
    ) {
        let answer = Asker::new(answer);
        let Some(item) = self.ledger.take(token) else {
            let told = match settlement {
                Settlement::Release | Settlement::Defer { .. } => Ok(()),
                _ => Err(lease_lost()),
            };
            answer.tell(told);
            return;
        };
        match settlement {
            Settlement::Ack => {
                acks.settle(item.tag, Some(answer));
                self.ledger.finish(&item);
            }
            Settlement::Retry { after, .. } if self.keyed => {
                self.ledger.retry(item, after);
                self.journal.tell_when_written(answer);
            }
            Settlement::Retry { after, .. } => {
                let facts = item.facts_of(item.attempt.saturating_add(1));
                self.copies.copy(item, facts, after, Some(answer));
            }
            Settlement::Reject(rejection) => self.copies.dead_letter(item, rejection, Some(answer)),
            Settlement::Defer { after } if self.keyed => {
                self.ledger.keep_for(item, after);
                answer.tell(Ok(()));
            }
            Settlement::Defer { after } => {
                let facts = item.facts_of(item.attempt);
                self.copies.copy(item, facts, after, Some(answer));
            }
            Settlement::Release if self.keyed => {
                self.ledger.put_back(item);
                answer.tell(Ok(()));
            }
            Settlement::Release if self.client.consume.can(Version::returns_uncounted) => {
                acks.put_back(item.tag);
                answer.tell(Ok(()));
            }
            Settlement::Release => {
                let facts = item.facts_of(item.attempt);
                self.copies.copy(item, facts, Duration::ZERO, Some(answer));
            }
        }
    }

    pub(super) fn renew(&mut self, token: Token) -> Result<()> {
        if self.ledger.renew(token, self.lease) { Ok(()) } else { Err(lease_lost().during("renew")) }
    }

    /// Returns a message to the group as if it had not been delivered: to its place if the broker supports that, as a
    /// copy otherwise.
    fn release(&mut self, acks: &mut Acks, item: Item) {
        if self.client.consume.can(Version::returns_uncounted) {
            return acks.put_back(item.tag);
        }
        let facts = Facts { attempt: item.attempt, ..item.facts.clone() };
        self.copies.copy(item, facts, Duration::ZERO, None);
    }

    /// Handles the end of a copy: if it is stored, the original is acknowledged; otherwise the original returns to the
    /// group.
    pub(super) async fn copied(&mut self, acks: &mut Acks, Copied { item, answer, result }: Copied) {
        let Err(error) = result else {
            acks.settle(item.tag, answer);
            return self.ledger.finish(&item);
        };
        tracing::warn!(%error, group = %self.group, "a copy could not be stored; the message goes back to its group");
        if let Some(answer) = answer {
            answer.tell(Err(error.during("settle")));
        }
        if self.keyed {
            // It keeps its place; another try follows.
            self.ledger.keep_for(item, AGAIN);
        } else {
            acks.give_back(item.tag).await;
        }
    }

    /// Starts to write the journal if a retry waits for it.
    pub(super) fn write_journal(&mut self) {
        self.journal.write(&self.ledger.notes);
    }

    /// The subscription was dropped: deliveries that are not settled have a lease from now on.
    pub(super) fn start_leases(&mut self) {
        self.ledger.start_leases(self.lease);
    }

    /// When the next lease or wait ends.
    pub(super) fn next_time(&self, leased: bool) -> Option<Instant> {
        self.ledger.next_time(leased)
    }

    /// Handles leases that have expired and waits that are over.
    pub(super) async fn pass(&mut self, acks: &mut Acks) {
        let now = Instant::now();
        for item in self.ledger.take_expired_leases(now) {
            // A keyed message goes back with all the others when this channel closes.
            if !self.keyed {
                acks.give_back(item.tag).await;
            }
        }
        self.ledger.end_waits(now);
    }

    /// Delivers nothing to consumers any more.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether the channel may be closed as far as the deliveries are concerned.
    pub(super) fn are_over(&self) -> bool {
        !self.ledger.has_out() && self.copies.len() == 0
    }

    pub(super) fn release_untaken(&mut self, acks: &mut Acks) {
        for item in self.ledger.take_untaken() {
            self.release(acks, item);
        }
    }

    /// The group was moved: all messages of this member are void and count as settled.
    pub(super) async fn give_up(&mut self, acks: &mut Acks) {
        while let Some(Copied { item, answer, result }) = self.copies.next().await {
            if result.is_ok() {
                acks.settle(item.tag, answer);
            }
        }
        for item in self.ledger.take_all() {
            acks.settle(item.tag, None);
        }
        self.ledger.notes.take();
        self.journal.clear();
    }

    /// Writes everything that the next owner of a keyed group needs.
    pub(super) async fn leave(&mut self) {
        if self.keyed {
            self.ledger.note_untaken();
            self.journal.write_all(&self.ledger.notes).await;
        }
    }

    /// Drops the state of a lost channel: the broker delivers everything that was fetched on it again.
    pub(super) fn forget(&mut self) {
        if self.keyed {
            self.ledger.note_untaken();
            self.journal.lose(&mut self.ledger.notes);
        }
        drop(self.ledger.take_all());
        self.copies.clear();
    }

    /// Returns the state of the member, for status queries.
    pub(super) fn holding(&self) -> Holding {
        let numbers = self.ledger.numbers();
        // Ready messages of a keyed group are behind the delivered ones in the queue.
        let (hidden, held) = if self.keyed { (0, numbers.ready) } else { (numbers.ready, 0) };
        Holding {
            group: self.group.to_string(),
            live: !self.stopping,
            in_flight: (numbers.out + self.copies.len() + hidden) as u64,
            held: (numbers.held + held) as u64,
            retrying: numbers.retrying as u64,
            oldest: numbers.oldest.map(Timestamp::as_millisecond),
            seen: self.seen,
        }
    }
}
