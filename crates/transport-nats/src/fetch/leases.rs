//! The leases of a member: the queue of messages to deliver, the renewal of leases, and their release at the end.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::codec::{ACK, PROGRESS};
use crate::double_ack::send;
use crate::in_flight::LeasedMessage;
use crate::member::Member;
use event_transport::delivery::{Delivery, Settle, Settlement, Token};
use event_transport::subscription::Feed;
use event_transport::telemetry::count_expired;

/// The leased messages of a member.
pub(super) struct Leases {
    member: Arc<Member>,
    /// Messages to deliver as soon as a slot is free.
    ready: VecDeque<Token>,
}

impl Leases {
    pub(super) fn new(member: &Arc<Member>) -> Self {
        Self { member: member.clone(), ready: VecDeque::new() }
    }

    /// Returns the number of messages that wait for a slot.
    pub(super) fn waiting(&self) -> usize {
        self.ready.len()
    }

    /// Adds entries to the messages in flight and to the ready queue.
    pub(super) fn accept(&mut self, entries: Vec<LeasedMessage>) {
        let mut in_flight = self.member.in_flight();
        for entry in entries {
            let place = &entry.place;
            let here = if entry.again { in_flight.at(&place.source, place.sequence) } else { None };
            match here.filter(|here| here.place.time == place.time) {
                // This process was late, so two deliveries arrived together. The first one was not an attempt of any
                // member.
                Some(here) => {
                    (here.ack, here.delivered) = (entry.ack, entry.delivered);
                    here.lease_until = entry.lease_until;
                }
                None => self.ready.push_back(in_flight.insert(entry)),
            }
        }
    }

    /// Delivers ready messages while slots are free.
    pub(super) fn hand_out(&mut self, feed: &Feed) {
        while !self.ready.is_empty() {
            let Some(slot) = feed.try_slot() else { return };
            let Some(token) = self.ready.pop_front() else { return };
            let mut in_flight = self.member.in_flight();
            let Some(entry) = in_flight.get(token) else { continue };
            if entry.is_expired() {
                let entry = in_flight.remove(token).expect("just seen");
                drop(in_flight);
                count_expired("nats", 1);
                self.member.client.outbound.send_bare(entry.ack, None, ACK);
                continue;
            }
            entry.out = true;
            let (message, info) = (entry.message.clone(), entry.info.clone());
            drop(in_flight);
            feed.push(Delivery::new(message, info, self.member.clone(), token, slot));
        }
    }

    /// Drops the messages that wait for a slot; the server delivers them again.
    pub(super) fn drop_ready(&mut self) {
        let mut in_flight = self.member.in_flight();
        for token in self.ready.drain(..) {
            in_flight.remove(token);
        }
    }

    /// Renews the leases of all messages that this member holds. A confirmed renewal extends each of them by one
    /// lease.
    pub(super) fn renew(&self) {
        let asked = Instant::now();
        let client = &self.member.client;
        let incarnation = client.link.incarnation();
        let mut last = HashMap::new();
        let mut tokens = Vec::new();
        for (token, entry) in self.member.in_flight().iter() {
            if entry.lease_until <= asked {
                continue; // lease lost: a renewal might take the message from another member
            }
            let source = &entry.place.source;
            let seq = send(client, source, entry.ack.clone(), PROGRESS);
            last.insert(Arc::as_ptr(source), (source.clone(), entry.ack.clone(), seq));
            tokens.push((token, Arc::as_ptr(source) as usize));
        }
        for (source, ack, seq) in last.into_values() {
            let member = self.member.clone();
            let at = Arc::as_ptr(&source) as usize;
            let tokens: Vec<_> = tokens.iter().filter(|(_, of)| *of == at).map(|(token, _)| *token).collect();
            tokio::spawn(async move {
                let confirm = member.confirm(source, ack, PROGRESS, seq).await.is_ok();
                if confirm && member.client.link.incarnation() == incarnation {
                    let until = asked + member.certain();
                    let mut in_flight = member.in_flight();
                    for token in tokens {
                        if let Some(entry) = in_flight.get(token) {
                            entry.lease_until = entry.lease_until.max(until);
                        }
                    }
                }
            });
        }
    }

    /// Releases messages that wait for a slot, in their old order. Releases all messages when the connection closes.
    pub(super) async fn release_untaken(&mut self) {
        let waiting: Vec<_> = self.ready.drain(..).collect();
        let tokens: Vec<_> = if *self.member.closing.borrow() { self.tokens() } else { waiting };
        let mut tokens: Vec<_> = {
            let mut in_flight = self.member.in_flight();
            tokens
                .into_iter()
                .filter_map(|token| Some((in_flight.get(token)?.place.sequence, token)))
                .collect()
        };
        tokens.sort_unstable();
        self.release(tokens.into_iter().map(|(_, token)| token)).await;
    }

    fn tokens(&self) -> Vec<Token> {
        self.member.in_flight().iter().map(|(token, _)| token).collect()
    }

    async fn release(&self, tokens: impl Iterator<Item = Token>) {
        let confirms: Vec<_> = tokens.map(|token| self.member.settle(token, Settlement::Release)).collect();
        futures_util::future::join_all(confirms).await;
    }

    /// Renews the leases of taken messages until the subscription is dropped.
    pub(super) async fn hold(&self, feed: &Feed, connects: &mut watch::Receiver<u64>) {
        let mut closing = self.member.closing.subscribe();
        let gone = feed.gone().clone();
        let closed = self.member.client.closed.clone();
        let mut renew = Instant::now() + self.member.lease() / 3;
        while !gone.is_cancelled() {
            tokio::select! {
                () = gone.cancelled() => {}
                () = closed.cancelled() => return,
                () = async { drop(closing.wait_for(|closing| *closing).await) } => {
                    return self.release(self.tokens().into_iter()).await;
                }
                _ = connects.changed() => {}
                () = tokio::time::sleep_until(renew) => {
                    self.renew();
                    renew = Instant::now() + self.member.lease() / 3;
                }
            }
        }
    }
}
