//! One member of a group: its unsettled deliveries, and the signals that make its reader check the server again.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use slab::Slab;
use smol_str::{SmolStr, format_smolstr};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::codec::EntryId;
use super::group::Place;
use super::keys::Source;
use event_transport::Subscribe;
use event_transport::bounds;
use event_transport::delivery::Token;
use event_transport::subject::Group;
use event_transport::sync::lock;

/// A subscription's membership in its group.
pub(super) struct Member {
    pub(super) client: Arc<Client>,
    pub(super) group: Group,
    /// Unique in the server; ends with the lease in milliseconds, so that other members can compute when it has
    /// expired.
    pub(super) consumer: SmolStr,
    pub(super) lease: Duration,
    pub(super) max_in_flight: usize,
    pub(super) table: Mutex<Slab<Unsettled>>,
    pub(super) signals: Signals,
    /// Cancelled when its deliveries are given back because the bus closes.
    pub(super) closed: CancellationToken,
    /// Cancelled when its reader task has ended.
    pub(super) ended: CancellationToken,
    /// The streams from which its consumer must be removed at the end.
    pub(super) joined: Mutex<Vec<(Arc<Source>, Arc<str>)>>,
    pub(super) keyed: KeyedState,
}

/// The additional state of a member of a keyed group.
#[derive(Default)]
pub(super) struct KeyedState {
    /// Settlements that the reader has to process.
    pub(super) settled: Mutex<Vec<Settled>>,
    /// Topics on which this member is active.
    pub(super) owned: Mutex<Vec<Owned>>,
    /// The number of the next item that the reader keeps.
    pub(super) next_item: AtomicU64,
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
#[derive(Debug)]
pub(super) struct Signals {
    events: Mutex<Events>,
    /// An event that must be handled at once.
    pub(super) wake: Notify,
    /// There may be room for another delivery.
    pub(super) room: Notify,
    /// `room` is notified only when no more deliveries than this are unsettled: a reader that waits for much room would
    /// otherwise be woken by each settlement.
    room_at: AtomicUsize,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            events: Mutex::default(),
            wake: Notify::new(),
            room: Notify::new(),
            room_at: AtomicUsize::new(usize::MAX),
        }
    }
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
        let mut events = lock(&self.events);
        match events.due.iter_mut().find(|(known, _)| known == topic) {
            Some((_, known)) if *known <= at => return,
            Some((_, known)) => *known = at,
            None => events.due.push((topic.into(), at)),
        }
        drop(events);
        self.wake.notify_one();
    }

    pub(super) fn changed(&self) {
        lock(&self.events).changed = true;
        self.wake.notify_one();
    }

    pub(super) fn all(&self) {
        lock(&self.events).all = true;
        self.wake.notify_one();
    }

    /// Limits the notifications of `room` to settlements that leave at most this number of deliveries unsettled.
    pub(super) fn want_room_at(&self, unsettled: usize) {
        self.room_at.store(unsettled, Ordering::Relaxed);
    }

    pub(super) fn take(&self) -> Events {
        std::mem::take(&mut *lock(&self.events))
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
                lock(&self.events).owner = true;
                self.wake.notify_one();
            }
            _ => self.all(),
        }
    }
}

/// Shortest life of a member without a beat. A member counts as dead after two leases without a beat, but not before
/// this time.
const SHORTEST_LIFE: Duration = Duration::from_secs(3);

impl Member {
    pub(super) fn new(client: &Arc<Client>, group: Group, spec: &Subscribe) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lease = bounds::millis(spec.lease);
        Self {
            consumer: format_smolstr!("{}-{number}.{lease}", client.id),
            client: client.clone(),
            group,
            lease: spec.lease,
            max_in_flight: spec.max_in_flight.max(1),
            table: Mutex::default(),
            signals: Signals::default(),
            closed: CancellationToken::new(),
            ended: CancellationToken::new(),
            joined: Mutex::default(),
            keyed: KeyedState::default(),
        }
    }

    /// The time for which it counts as alive after a beat.
    pub(super) fn life_millis(&self) -> u64 {
        bounds::millis((self.lease * 2).max(SHORTEST_LIFE))
    }

    /// Records the streams from which its consumer must be removed at the end.
    pub(super) fn joins(&self, places: &[Place]) {
        *lock(&self.joined) = places
            .iter()
            .flat_map(|place| {
                [(place.log.clone(), place.name.clone()), (place.replay.clone(), place.name.clone())]
            })
            .collect();
    }

    /// Number of deliveries that are not settled; settlements in flight still count.
    pub(super) fn unsettled(&self) -> usize {
        lock(&self.table).len()
    }

    /// Number of further deliveries that may be fetched: settlements in flight still count as unsettled.
    pub(super) fn room(&self, free: usize) -> usize {
        free.min(self.max_in_flight.saturating_sub(self.unsettled()))
    }

    /// The latest time at which no other consumer can have claimed an entry that was fetched or renewed at `asked`.
    pub(super) fn safe_from(&self, asked: Instant) -> Instant {
        asked + self.lease - self.lease / 8
    }

    /// Registers a delivery that is not settled.
    pub(super) fn hold(&self, unsettled: Unsettled) -> Token {
        lock(&self.table).insert(unsettled) as Token
    }

    pub(super) fn held(&self, token: Token) -> Option<Unsettled> {
        lock(&self.table).get(token as usize).cloned()
    }

    /// Removes deliveries that are settled, with any result; returns the number of those that are left.
    pub(super) fn finish(&self, tokens: impl Iterator<Item = Token>) -> usize {
        let mut table = lock(&self.table);
        tokens.for_each(|token| drop(table.try_remove(token as usize)));
        table.len()
    }

    /// Signals that there may be room, as `left` deliveries are unsettled.
    pub(super) fn has_room(&self, left: usize) {
        if left <= self.signals.room_at.load(Ordering::Relaxed) {
            self.signals.room.notify_one();
        }
    }

    /// Keyed: reports the result to the reader.
    pub(super) fn settled(&self, item: Option<u64>, how: How) {
        if let Some(item) = item {
            lock(&self.keyed.settled).push(Settled { item, how });
            self.signals.wake.notify_one();
        }
    }
}
