//! The expected results of the traffic, once everything has settled.

use std::collections::BTreeMap;

/// Counts that can be computed from the traffic alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Expected {
    /// Events published, by subject.
    pub published: BTreeMap<String, u64>,
    /// Messages handled successfully, by group.
    pub handled: BTreeMap<String, u64>,
    /// Retries, by group.
    pub retried: BTreeMap<String, u64>,
    /// Dead letters, by group.
    pub dead: BTreeMap<String, u64>,
    /// Tasks that succeeded, by name; scheduled ones not included.
    pub tasks: BTreeMap<String, u64>,
    /// Log records sent over HTTP, by service.
    pub posted: BTreeMap<String, u64>,
}

impl Expected {
    /// Adds `by` to the count of `what` in one of the maps.
    pub(crate) fn add(map: &mut BTreeMap<String, u64>, what: &str, by: u64) {
        if by > 0 {
            *map.entry(what.to_owned()).or_default() += by;
        }
    }

    /// Returns the sum of both systems' expectations.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for (map, more) in [
            (&mut self.published, other.published),
            (&mut self.handled, other.handled),
            (&mut self.retried, other.retried),
            (&mut self.dead, other.dead),
            (&mut self.tasks, other.tasks),
            (&mut self.posted, other.posted),
        ] {
            for (what, by) in more {
                Self::add(map, &what, by);
            }
        }
        self
    }
}
