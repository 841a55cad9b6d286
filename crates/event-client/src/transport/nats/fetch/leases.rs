//! Lease renewal for the messages of a member, and their release when the member stops.

use super::receive::{Received, Unwanted};
use super::*;

impl Fetcher {
    /// Renews the leases of all messages that this member holds. A confirmed renewal extends each of them by one
    /// lease.
    pub(super) fn renew(&self) {
        let asked = Instant::now();
        let incarnation = self.member.connection.incarnation();
        let mut last = HashMap::new();
        let mut tokens = Vec::new();
        for (token, entry) in self.member.in_flight().iter() {
            if entry.lease_until <= asked {
                continue; // lease lost: a renewal might take the message from another member
            }
            let seq = send(&self.member.connection, &entry.source, entry.ack.clone(), PROGRESS);
            last.insert(Arc::as_ptr(&entry.source), (entry.source.clone(), entry.ack.clone(), seq));
            tokens.push((token, Arc::as_ptr(&entry.source) as usize));
        }
        for (source, ack, seq) in last.into_values() {
            let member = self.member.clone();
            let at = Arc::as_ptr(&source) as usize;
            let tokens: Vec<_> = tokens.iter().filter(|(_, of)| *of == at).map(|(token, _)| *token).collect();
            tokio::spawn(async move {
                let confirm = member.confirm(source, ack, PROGRESS, seq).await.is_ok();
                if confirm && member.connection.incarnation() == incarnation {
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

    /// Releases the messages that no consumer has taken, including those in transit.
    pub(super) async fn hand_back(&mut self) {
        self.release_untaken().await;
        let patience = Instant::now() + EXPIRES * 3;
        while self.pulls.any_open()
            && self.member.connection.is_connected()
            && let Ok(Some(message)) = tokio::time::timeout_at(patience, self.messages.next()).await
        {
            let now = Instant::now();
            match message.status {
                Some(status) => drop(self.pulls.status(&message, status)),
                None => {
                    if let Received::LeasedMessage(entry) = self.read(message, now, Unwanted::Take).await {
                        self.accept(vec![entry]);
                        self.release_untaken().await;
                    }
                }
            }
        }
    }

    /// Releases messages that wait for a slot, in their old order. Releases all messages when the connection closes.
    pub(super) async fn release_untaken(&mut self) {
        let waiting: Vec<_> = self.ready.drain(..).collect();
        let tokens: Vec<_> = if *self.member.closing.borrow() {
            self.member.in_flight().iter().map(|(token, _)| token).collect()
        } else {
            waiting
        };
        let mut tokens: Vec<_> = {
            let mut in_flight = self.member.in_flight();
            tokens.into_iter().filter_map(|token| Some((in_flight.get(token)?.sequence, token))).collect()
        };
        tokens.sort_unstable();
        self.release(tokens.into_iter().map(|(_, token)| token)).await;
    }

    pub(super) async fn release(&self, tokens: impl Iterator<Item = Token>) {
        let confirms: Vec<_> =
            tokens.map(|token| self.settle.settle(token, crate::delivery::Settlement::Release)).collect();
        futures_util::future::join_all(confirms).await;
    }

    /// Renews the leases of taken messages until the subscription is dropped.
    pub(super) async fn hold(&mut self, connects: &mut tokio::sync::watch::Receiver<u64>) {
        let mut closing = self.member.closing.subscribe();
        let gone = self.feed.gone().clone();
        let closed = self.member.connection.closed.clone();
        let mut renew = Instant::now() + self.member.lease() / 3;
        while !gone.is_cancelled() {
            tokio::select! {
                () = gone.cancelled() => {}
                () = closed.cancelled() => return,
                () = async { drop(closing.wait_for(|closing| *closing).await) } => {
                    let tokens: Vec<_> = self.member.in_flight().iter().map(|(token, _)| token).collect();
                    self.release(tokens.into_iter()).await;
                    return;
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
