//! One member of a group: its unsettled deliveries, and the signals that make its reader check the server again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use slab::Slab;
use smol_str::SmolStr;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::codec::EntryId;
use super::keys::Source;
use crate::bounds;
use crate::confirm::Confirm;
use crate::delivery::{Settle, Settlement, Token};
use crate::subject::Group;

/// A subscription's membership in its group.
pub(super) struct Member {
    pub(super) client: Arc<Client>,
    pub(super) group: Group,
    /// Unique in the server; ends with the lease in milliseconds, so that other members can compute when it has
    /// expired.
    pub(super) consumer: SmolStr,
    pub(super) lease: Duration,
    pub(super) max_in_flight: usize,
    pub(super) keyed: bool,
    pub(super) table: Mutex<Slab<Unsettled>>,
    pub(super) signals: Signals,
    /// Cancelled when its deliveries are given back because the bus closes.
    pub(super) closed: CancellationToken,
    /// Cancelled when its reader task has ended.
    pub(super) ended: CancellationToken,
    /// Keyed: settlements that the reader has to process.
    pub(super) lanes: Mutex<Vec<Settled>>,
    /// Keyed: topics on which this member is active.
    pub(super) owned: Mutex<Vec<Owned>>,
    /// The streams from which its consumer must be removed at the end.
    pub(super) joined: Mutex<Vec<(Arc<Source>, Arc<str>)>>,
}

/// The right to deliver a topic's messages.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) topic: SmolStr,
    /// Until then no other member can have become active.
    pub(super) safe_until: Instant,
}

/// A delivery that is not settled.
#[derive(Clone, Debug)]
pub(super) struct Unsettled {
    pub(super) source: Arc<Source>,
    /// The group's name in Redis when the entry was fetched: a moved group has another name.
    pub(super) name: Arc<str>,
    pub(super) id: EntryId,
    pub(super) attempt: u32,
    pub(super) since: Instant,
    /// Until then no other consumer can have claimed the entry.
    pub(super) safe_until: Instant,
    /// Its number among the keyed reader's items.
    pub(super) item: Option<u64>,
}

/// Keyed: the result of an item's settlement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settled {
    pub(super) item: u64,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// Acknowledged or dead: the next message of its key may be delivered.
    Done,
    /// To be tried again after this time, with this number of attempts made.
    Again(Duration, u32),
    /// Another consumer has it, or its state is unknown: the reader must check the server.
    Lost,
}

/// Reasons for the reader to check the server again.
#[derive(Debug, Default)]
pub(super) struct Signals {
    events: Mutex<Events>,
    /// An event that must be handled at once.
    pub(super) wake: Notify,
    /// There may be room for another delivery.
    pub(super) room: Notify,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Events {
    /// Topics with a due entry, each with the time when it is due.
    pub(super) due: Vec<(SmolStr, Instant)>,
    /// The group was changed, moved or deleted, or topics were added.
    pub(super) changed: bool,
    /// Keyed: a topic has lost its active member.
    pub(super) owner: bool,
    /// The cause is unknown: everything must be checked.
    pub(super) all: bool,
}

impl Signals {
    pub(super) fn due(&self, topic: &str, after: Duration) {
        let at = bounds::from_now(after);
        let mut events = self.events.lock().expect("not poisoned");
        match events.due.iter_mut().find(|(known, _)| known == topic) {
            Some((_, known)) if *known <= at => return,
            Some((_, known)) => *known = at,
            None => events.due.push((topic.into(), at)),
        }
        drop(events);
        self.wake.notify_one();
    }

    pub(super) fn changed(&self) {
        self.events.lock().expect("not poisoned").changed = true;
        self.wake.notify_one();
    }

    pub(super) fn all(&self) {
        self.events.lock().expect("not poisoned").all = true;
        self.wake.notify_one();
    }

    pub(super) fn take(&self) -> Events {
        std::mem::take(&mut *self.events.lock().expect("not poisoned"))
    }

    /// Handles a message on the group's channel: `due TOPIC MS`, `changed` or `owner`; any other message, also an empty
    /// one, makes the reader check everything.
    pub(super) fn on_message(&self, message: &[u8]) {
        let mut words = std::str::from_utf8(message).unwrap_or_default().split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some("due"), Some(topic), millis) => {
                let after = millis.and_then(|ms| ms.parse().ok()).unwrap_or(0);
                self.due(topic, Duration::from_millis(after));
            }
            (Some("changed"), ..) => self.changed(),
            (Some("owner"), ..) => {
                self.events.lock().expect("not poisoned").owner = true;
                self.wake.notify_one();
            }
            _ => self.all(),
        }
    }
}

impl Member {
    /// Number of further deliveries that may be fetched: settlements in flight still count as unsettled.
    pub(super) fn room(&self, free: usize) -> usize {
        free.min(self.max_in_flight.saturating_sub(self.table.lock().expect("not poisoned").len()))
    }

    /// The latest time at which no other consumer can have claimed an entry that was fetched or renewed at `asked`.
    pub(super) fn safe_from(&self, asked: Instant) -> Instant {
        asked + self.lease - self.lease / 8
    }

    pub(super) fn held(&self, token: Token) -> Option<Unsettled> {
        self.table.lock().expect("not poisoned").get(token as usize).cloned()
    }

    /// Removes a delivery that is settled, with any result; the caller must signal that there may be room.
    pub(super) fn finish(&self, token: Token) {
        self.table.lock().expect("not poisoned").try_remove(token as usize);
    }

    /// Keyed: reports the result to the reader.
    pub(super) fn settled(&self, item: Option<u64>, how: How) {
        if let Some(item) = item {
            self.lanes.lock().expect("not poisoned").push(Settled { item, how });
            self.signals.wake.notify_one();
        }
    }
}

/// Settles the deliveries of a subscription.
pub(super) struct Holder(pub(super) Arc<Member>);

impl Settle for Holder {
    fn settle(&self, token: Token, settlement: Settlement) -> Confirm<()> {
        self.0.client.settler.settle(&self.0, token, settlement)
    }

    fn in_progress(&self, token: Token) -> Confirm<()> {
        self.0.client.settler.renew(&self.0, token)
    }
}

impl Member {
    /// Gives all deliveries back to the group, because the bus closes.
    pub(super) async fn hand_back(self: &Arc<Self>) {
        self.closed.cancel();
        // The reader itself releases entries that it was just fetching.
        let patience = self.client.config.publish_timeout;
        let _ = tokio::time::timeout(patience, self.ended.cancelled()).await;
        let held: Vec<Token> =
            self.table.lock().expect("not poisoned").iter().map(|(token, _)| token as Token).collect();
        let released: Vec<_> = held
            .into_iter()
            .map(|token| self.client.settler.settle(self, token, Settlement::Release))
            .collect();
        for confirm in released {
            let _ = confirm.await;
        }
        let left = super::lease::part(self);
        let _ = tokio::time::timeout(patience, left).await;
    }
}
