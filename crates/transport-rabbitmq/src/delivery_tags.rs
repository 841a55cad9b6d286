//! Tracks the unacknowledged delivery tags of one channel, to acknowledge them with as few frames as possible.

use std::collections::VecDeque;

/// Delivery tags of one channel, which count up from 1.
#[derive(Debug)]
pub(super) struct DeliveryTags {
    /// The tag of the first of `states`; if that is empty, the next tag to arrive.
    first: u64,
    states: VecDeque<State>,
    /// Settled tags that are not acknowledged to the broker.
    loose: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Open,
    /// Settled, and not acknowledged to the broker yet.
    Settled,
    /// Acknowledged, or returned to the broker.
    Told,
}

/// One acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    /// Acknowledges all earlier tags as well.
    pub(super) multiple: bool,
}

impl Default for DeliveryTags {
    fn default() -> Self {
        Self { first: 1, states: VecDeque::new(), loose: Vec::new() }
    }
}

impl DeliveryTags {
    /// Returns whether `tag` is the next one. If not, an earlier delivery did not arrive, and an acknowledgement of all
    /// tags up to this one would lose its message: no acknowledgement may be sent on this channel any more.
    #[must_use]
    pub(super) fn received(&mut self, tag: u64) -> bool {
        let next = tag == self.first + self.states.len() as u64;
        if next {
            self.states.push_back(State::Open);
        }
        next
    }

    fn state(&mut self, tag: u64) -> Option<&mut State> {
        self.states.get_mut(usize::try_from(tag.checked_sub(self.first)?).ok()?)
    }

    pub(super) fn settle(&mut self, tag: u64) {
        if let Some(state @ State::Open) = self.state(tag) {
            *state = State::Settled;
            self.loose.push(tag);
        }
    }

    /// Number of settled tags that are not acknowledged to the broker.
    pub(super) fn to_tell(&self) -> usize {
        self.loose.len()
    }

    /// Number of tags for which the broker has received no acknowledgement.
    pub(super) fn unsettled(&self) -> usize {
        self.states.iter().filter(|state| **state != State::Told).count()
    }

    /// Marks a tag whose message was returned to the broker separately.
    pub(super) fn told(&mut self, tag: u64) {
        if let Some(state) = self.state(tag) {
            *state = State::Told;
        }
    }

    /// Appends the acknowledgements to send to the broker now.
    pub(super) fn flush(&mut self, acks: &mut Vec<Ack>) {
        let mut last = None;
        let mut count = 0;
        while let Some(state) = self.states.front().filter(|state| **state != State::Open) {
            // `multiple` must name a tag that is open at the broker; otherwise the broker would take it for all open
            // tags.
            if *state == State::Settled {
                last = Some(self.first);
                count += 1;
            }
            self.states.pop_front();
            self.first += 1;
        }
        if let Some(tag) = last {
            acks.push(Ack { tag, multiple: count > 1 });
        }
        for tag in std::mem::take(&mut self.loose) {
            if let Some(state @ State::Settled) = self.state(tag) {
                *state = State::Told;
                acks.push(Ack { tag, multiple: false });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_prefix_takes_one_frame() {
        let mut tags = DeliveryTags::default();
        assert!((1..=6).all(|tag| tags.received(tag)));
        let mut acks = Vec::new();
        [2, 4].into_iter().for_each(|tag| tags.settle(tag));
        tags.flush(&mut acks);
        assert_eq!(acks, [Ack { tag: 2, multiple: false }, Ack { tag: 4, multiple: false }]);
        acks.clear();
        [1, 3].into_iter().for_each(|tag| tags.settle(tag));
        tags.flush(&mut acks);
        assert_eq!(acks, [Ack { tag: 3, multiple: true }]);
    }

    #[test]
    fn a_gap_is_seen() {
        let mut tags = DeliveryTags::default();
        assert!(!tags.received(2), "the first of a channel is 1");
        assert!(tags.received(1));
        tags.settle(1);
        tags.flush(&mut Vec::new());
        assert!(!tags.received(3), "also when nothing is open");
        assert!(tags.received(2));
        assert!(!tags.received(2), "nor does one come twice");
        assert!(!tags.received(4));
    }

    proptest! {
        /// Simulates the broker: acknowledgements remove exactly the settled tags, and none names a tag that is unknown
        /// to the broker.
        #[test]
        fn exactly_the_settled_tags_are_acknowledged(
            steps in proptest::collection::vec((0_u8..10, any::<proptest::sample::Index>()), 1..200),
        ) {
            let (mut tags, mut broker, mut open) = (DeliveryTags::default(), BTreeSet::new(), Vec::new());
            let mut next = 1;
            for (step, index) in steps {
                match step {
                    0..4 => {
                        prop_assert!(tags.received(next));
                        broker.insert(next);
                        open.push(next);
                        next += 1;
                    }
                    4..8 if !open.is_empty() => tags.settle(open.remove(index.index(open.len()))),
                    8 if !open.is_empty() => {
                        let tag = open.remove(index.index(open.len()));
                        tags.told(tag);
                        broker.remove(&tag);
                    }
                    _ => {
                        let mut acks = Vec::new();
                        tags.flush(&mut acks);
                        for ack in acks {
                            prop_assert!(broker.contains(&ack.tag), "{ack:?} of {broker:?}");
                            broker.retain(|tag| *tag != ack.tag && !(ack.multiple && *tag < ack.tag));
                        }
                        prop_assert_eq!(broker.iter().copied().collect::<Vec<_>>(), {
                            let mut sorted = open.clone();
                            sorted.sort_unstable();
                            sorted
                        });
                    }
                }
            }
        }
    }
}
