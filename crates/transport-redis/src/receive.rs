//! Receives the entries of a group that is not keyed: delivers those that the group wants, and acknowledges the others.

use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use redis::Value;
use tokio::time::Instant;

use super::codec::{self, Entry};
use super::cursor::TopicCursor;
use super::deliver::{Deliverer, Fetched};
use super::group::Place;
use super::keys::Source;
use super::member::Unsettled;
use super::unmatched::{self, Misjudged, Stale};
use event_transport::sync::lock;

pub(super) struct Receiver {
    pub(super) deliverer: Deliverer,
    /// Entries that were read under patterns that have changed since.
    stale: Stale,
}

impl Receiver {
    pub(super) fn new(deliverer: Deliverer) -> Self {
        Self { deliverer, stale: Arc::new(Mutex::new(Some(Vec::new()))) }
    }

    /// Handles new entries of a topic's log, as `XREADGROUP` returned them.
    pub(super) async fn receive(&self, topic: &mut TopicCursor, entries: Vec<Value>, asked: Instant) {
        let source = topic.place.log.clone();
        let entries: Vec<(Entry, u32)> =
            entries.into_iter().filter_map(|value| Some((codec::read(value, &source.topic)?, 1))).collect();
        if let Some((last, _)) = entries.last() {
            topic.last = topic.last.max(last.id);
        }
        self.hand_out(&topic.place, &source, &topic.place.name, entries, asked);
        // Lets the consumer run first: another read now would wake a second thread, and the consumer would have to wait
        // for it.
        tokio::task::yield_now().await;
    }

    /// Delivers entries to the consumer; acknowledges unwanted and expired ones.
    pub(super) fn hand_out(
        &self,
        place: &Place,
        source: &Arc<Source>,
        name: &Arc<str>,
        entries: Vec<(Entry, u32)>,
        asked: Instant,
    ) {
        let Deliverer { member, settle, .. } = &self.deliverer;
        let now = entries.iter().any(|(entry, _)| entry.message.expires_at.is_some()).then(Timestamp::now);
        let (mut unwanted, mut expired) = (Vec::new(), Vec::new());
        let over = self.deliverer.is_over();
        let safe_until = member.safe_from(asked);
        for (entry, attempt) in entries {
            let matches =
                entry.ill_named || source.replay || place.filters.matches(&entry.message.subject, entry.id);
            if !matches {
                unwanted.push((entry, attempt));
            } else if !entry.ill_named && now.is_some_and(|now| entry.is_expired(now)) {
                expired.push(entry.id);
            } else {
                let Entry { id, message, origin, replayed, ill_named, .. } = entry;
                let (source, name) = (source.clone(), name.clone());
                let unsettled = Unsettled { source, name, id, attempt, since: asked, safe_until, item: None };
                let fetched = Fetched { message: Arc::new(message), origin, replayed, ill_named };
                self.deliverer.deliver(fetched, unsettled, over);
            }
        }
        if !expired.is_empty() {
            unmatched::expire(member, source, name, &expired);
        }
        if !unwanted.is_empty() {
            unmatched::skip(member, settle, place, unwanted, asked, &self.stale);
        }
    }

    /// Takes the entries that must be checked against the patterns of now.
    pub(super) fn take_stale(&self) -> Vec<Misjudged> {
        lock(&self.stale).as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Ends the reading: entries that nothing will check any more go back to the group.
    pub(super) fn end(&self) {
        let stale = lock(&self.stale).take().unwrap_or_default();
        for misjudged in stale {
            unmatched::hand_back(&self.deliverer.member, &*self.deliverer.settle, misjudged);
        }
    }
}
