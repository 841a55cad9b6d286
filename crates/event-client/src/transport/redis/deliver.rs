//! Delivers entries to the consumer of a group that is not keyed, and acknowledges entries that the group does not
//! want.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::codec::{Entry, EntryId};
use super::fetch::Fetcher;
use super::keys::Source;
use super::member::Unsettled;
use super::unmatched;
use crate::delivery::{Delivery, DeliveryInfo, Reason, Rejection, Settlement};

impl Fetcher {
    /// Delivers entries to the consumer; acknowledges unwanted and expired ones.
    pub(super) async fn hand_out(
        &mut self,
        source: &Arc<Source>,
        name: &Arc<str>,
        entries: Vec<(Entry, u32)>,
        asked: Instant,
    ) {
        let Some(at) = self.topics.iter().position(|topic| topic.place.log.topic == source.topic) else {
            return;
        };
        let place = &self.topics[at].place;
        let now = entries.iter().any(|(entry, _)| entry.message.expires_at.is_some()).then(Timestamp::now);
        let (mut unwanted, mut expired) = (Vec::new(), Vec::new());
        let over = self.is_over();
        for (entry, attempt) in entries {
            if entry.ill_named {
                let held = self.hold(source, name, entry.id, attempt, asked);
                self.dead_letter(held);
            } else if !source.replay && !place.filters.matches(&entry.message.subject, entry.id) {
                unwanted.push((entry, attempt));
            } else if now.is_some_and(|now| entry.is_expired(now)) {
                expired.push(entry.id);
            } else {
                let token = self.hold(source, name, entry.id, attempt, asked);
                let slot = if over { None } else { self.feed.try_slot() };
                let Some(slot) = slot else {
                    drop(self.settle.settle(token, Settlement::Release));
                    continue;
                };
                let mut info = DeliveryInfo::new(attempt);
                info.position = Some(entry.origin.position());
                info.published_at = entry.origin.time();
                info.replayed = entry.replayed;
                self.feed.push(Delivery::new(
                    Arc::new(entry.message),
                    info,
                    self.settle.clone(),
                    token,
                    slot,
                ));
            }
        }
        if !expired.is_empty() {
            unmatched::expire(&self.member, source, name, &expired);
        }
        if !unwanted.is_empty() {
            unmatched::skip(&self.member, place, unwanted, asked, &self.stale);
        }
    }

    fn hold(&self, source: &Arc<Source>, name: &Arc<str>, id: EntryId, attempt: u32, asked: Instant) -> u64 {
        let held = Unsettled {
            source: source.clone(),
            name: name.clone(),
            id,
            attempt,
            since: asked,
            safe_until: self.member.safe_from(asked),
            item: None,
        };
        self.member.table.lock().expect("not poisoned").insert(held) as u64
    }

    /// A foreign message with an invalid subject matches no pattern; as a dead letter it is visible to operators.
    fn dead_letter(&self, token: u64) {
        let rejection = Rejection::new(Reason::Undecodable, "the subject of this foreign message is invalid");
        drop(self.settle.settle(token, Settlement::Reject(rejection)));
    }
}
