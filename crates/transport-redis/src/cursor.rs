//! How far the reader of a group that is not keyed is on one topic.

use tokio::time::Instant;

use super::codec::EntryId;
use super::group::Place;

/// The state of one topic of the group.
pub(super) struct TopicCursor {
    pub(super) place: Place,
    /// When to look for due retries and dead members' entries.
    pub(super) next_look: Instant,
    /// The last look found a reason to take entries, or a notification gave one.
    pub(super) busy: bool,
    /// Last entry received; `XREAD` waits from here when there is no room for one entry of each topic.
    pub(super) last: EntryId,
    /// The topic may have new entries.
    pub(super) maybe: bool,
}

impl TopicCursor {
    /// The cursors of these places; a topic that was read before continues.
    pub(super) fn all(places: Vec<Place>, old: &[Self]) -> Vec<Self> {
        let now = Instant::now();
        places
            .into_iter()
            .map(|place| {
                let last = old
                    .iter()
                    .find(|topic| topic.place.name == place.name && topic.place.log.topic == place.log.topic)
                    .map_or(place.delivered, |topic| topic.last);
                Self { place, next_look: now, busy: false, last, maybe: true }
            })
            .collect()
    }
}
