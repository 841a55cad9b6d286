//! The stored record of a group: its start, its filters, and earlier filters with the messages for which they hold.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smol_str::SmolStr;

use event_transport::bounds;
use event_transport::subject::{Pattern, Subject};
use event_transport::{Start, Subscribe};

/// Largest number of earlier filter sets that are kept apart.
const MOST_PAST: usize = 64;

/// The stored record of a group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Record {
    pub(in super::super) filters: Vec<SmolStr>,
    pub(in super::super) keyed: bool,
    pub(in super::super) lease_ms: u64,
    /// Increases when the group is moved; the group has new consumers then.
    #[serde(default)]
    pub(in super::super) epoch: u64,
    /// Start position of its consumers.
    pub(in super::super) from: StartAt,
    /// Filters that hold for messages published before a change of the filters, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(in super::super) past: Vec<Past>,
    /// Start sequence in topics that it read in the other mode before (keyed or not), or whose stream was created
    /// again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in super::super) starts: BTreeMap<SmolStr, u64>,
    /// Dead letters have been replayed to it.
    #[serde(default)]
    pub(in super::super) replays: bool,
    /// Number of changes of its filters.
    #[serde(default)]
    pub(in super::super) changes: u64,
    /// Creation times of the streams that its sequences refer to: a stream that is created again restarts its
    /// sequence.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(in super::super) made: BTreeMap<SmolStr, Timestamp>,
    /// The group was deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(in super::super) deleted: bool,
}

/// Start position of a consumer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum StartAt {
    /// The time at which this record was stored.
    Now,
    All,
    Time(Timestamp),
    Sequence(u64),
}

/// An earlier set of filters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Past {
    pub(in super::super) filters: Vec<SmolStr>,
    /// The last sequence of each topic for which they hold.
    pub(in super::super) until: BTreeMap<SmolStr, u64>,
    /// Number of changes before them.
    #[serde(default)]
    pub(in super::super) number: u64,
}

impl StartAt {
    pub(in super::super) fn new(start: Start) -> Self {
        match start {
            Start::New => Self::Now,
            Start::Earliest => Self::All,
            Start::Time(time) => Self::Time(time),
            // No stream reaches a higher sequence; the server would wait for it.
            Start::Position(position) => match i64::try_from(position.0) {
                Ok(sequence) => Self::Sequence(sequence.cast_unsigned().max(1)),
                Err(_) => Self::Now,
            },
        }
    }
}

impl StartAt {
    /// Writes the start into a consumer's configuration.
    pub(in super::super) fn write(&self, config: &mut Value) {
        match self {
            Self::Now => config["deliver_policy"] = json!("new"),
            Self::All => config["deliver_policy"] = json!("all"),
            Self::Time(time) => {
                config["deliver_policy"] = json!("by_start_time");
                config["opt_start_time"] = json!(reachable(*time));
            }
            Self::Sequence(sequence) => {
                config["deliver_policy"] = json!("by_start_sequence");
                config["opt_start_seq"] = json!(sequence);
            }
        }
    }
}

impl Record {
    pub(super) fn new(spec: &Subscribe) -> Self {
        Self {
            filters: spec.filters.iter().map(|filter| filter.as_str().into()).collect(),
            keyed: spec.keyed,
            lease_ms: bounds::millis(spec.lease),
            epoch: 0,
            from: StartAt::new(spec.start),
            past: Vec::new(),
            starts: BTreeMap::new(),
            replays: false,
            changes: 0,
            made: BTreeMap::new(),
            deleted: false,
        }
    }

    pub(in super::super) fn patterns(&self) -> Vec<Pattern> {
        patterns(&self.filters)
    }

    /// Returns all patterns that may still match a message.
    pub(super) fn all_patterns(&self) -> Vec<Pattern> {
        let past = self.past.iter().flat_map(|past| patterns(&past.filters));
        self.patterns().into_iter().chain(past).collect()
    }

    pub(in super::super) fn lease(&self) -> Duration {
        bounds::bounded(Duration::from_millis(self.lease_ms))
    }

    /// Returns whether a pattern has a wildcard in place of the topic.
    pub(in super::super) fn takes_any_topic(&self) -> bool {
        self.all_patterns().iter().any(|pattern| pattern.topic().is_none())
    }

    /// Returns the group's start position in a topic.
    pub(in super::super) fn start_of(&self, topic: &str) -> StartAt {
        if let Some(sequence) = self.starts.get(topic) {
            return StartAt::Sequence(*sequence);
        }
        let earlier = self.past.iter().flat_map(|past| patterns(&past.filters));
        match self.past.first().and_then(|past| past.until.get(topic)) {
            // A later change of the filters added the topic.
            Some(until) if !earlier.into_iter().any(|old| reaches(&old, topic)) => {
                StartAt::Sequence(until + 1)
            }
            _ => self.from.clone(),
        }
    }

    /// Returns whether the group wants the message at `sequence` of its topic.
    pub(in super::super) fn wants(&self, subject: &Subject, sequence: u64) -> bool {
        let filters = (self.past.iter().rev())
            .find(|past| past.until.get(subject.topic()).is_some_and(|until| sequence <= *until))
            .map_or(&self.filters, |past| &past.filters);
        filters.iter().filter_map(|text| Pattern::new(text).ok()).any(|pattern| pattern.matches(subject))
    }
}

impl Record {
    /// Replaces the filters. `until` is the last sequence of each topic for which the present ones hold.
    pub(super) fn follow(&mut self, filters: Vec<SmolStr>, until: BTreeMap<SmolStr, u64>) {
        let filters = std::mem::replace(&mut self.filters, filters);
        self.past.insert(0, Past { filters, until, number: self.changes });
        self.changes += 1;
        // Above the limit the oldest sets are merged: the group receives too many messages rather than too few.
        while self.past.len() > MOST_PAST {
            let oldest = self.past.pop().expect("more than one");
            let last = self.past.last_mut().expect("more than one");
            for filter in oldest.filters {
                if !last.filters.contains(&filter) {
                    last.filters.push(filter);
                }
            }
        }
    }

    /// Removes earlier filters for which no unsettled message is left: all messages up to `floors` are settled, by
    /// members that knew the first `known` changes.
    pub(super) fn forget(&mut self, floors: &BTreeMap<SmolStr, u64>, known: u64) {
        let settled = |past: &Past| {
            past.number < known
                && past.until.iter().all(|(topic, until)| {
                    let reached = past.filters.iter().filter_map(|text| Pattern::new(text).ok());
                    let concerned = reached.into_iter().any(|pattern| reaches(&pattern, topic));
                    !concerned || floors.get(topic).is_some_and(|floor| floor >= until)
                })
        };
        while self.past.last().is_some_and(settled) {
            self.past.pop();
        }
    }

    /// Returns the filters that held after this number of changes, with the end of their range.
    pub(in super::super) fn after_changes(&self, changes: u64) -> Option<&Past> {
        self.past.iter().find(|past| past.number == changes)
    }

    /// Returns whether the record contains a sequence of this topic's stream.
    pub(super) fn counts_in(&self, topic: &str) -> bool {
        self.starts.contains_key(topic)
            || matches!(self.from, StartAt::Sequence(_))
            || self.past.iter().any(|past| past.until.get(topic).is_some_and(|until| *until > 0))
    }

    /// Returns whether the sequences in here refer to other streams than those in `other`.
    pub(in super::super) fn made_differs(&self, other: &Self) -> bool {
        self.made != other.made
    }

    /// Compares a topic's stream with the one that the sequences refer to. Returns whether that changed the record.
    pub(super) fn recognise(&mut self, topic: &SmolStr, created: Option<Timestamp>) -> bool {
        let Some(created) = created else { return false };
        match self.made.get(topic) {
            Some(made) if *made == created => false,
            Some(_) => {
                self.begin_anew(topic, created);
                true
            }
            None if self.counts_in(topic) => {
                self.made.insert(topic.clone(), created);
                true
            }
            None => false,
        }
    }

    /// Resets a topic whose stream was created again: all messages in the new stream are newer than the group.
    fn begin_anew(&mut self, topic: &SmolStr, made: Timestamp) {
        for past in &mut self.past {
            past.until.remove(topic);
        }
        self.starts.insert(topic.clone(), 1);
        self.made.insert(topic.clone(), made);
    }
}

fn patterns(filters: &[SmolStr]) -> Vec<Pattern> {
    filters.iter().filter_map(|text| Pattern::new(text).ok()).collect()
}

/// Limits `time` to the server's range: nanoseconds since 1970, and a year of four digits.
fn reachable(time: Timestamp) -> Timestamp {
    time.clamp(Timestamp::UNIX_EPOCH, bounds::time_from_now(bounds::LONGEST).max(Timestamp::UNIX_EPOCH))
}

/// Returns whether `pattern` may match a subject of `topic`.
pub(super) fn reaches(pattern: &Pattern, topic: &str) -> bool {
    pattern.topic().is_none_or(|own| own == topic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_transport::subject::Group;

    #[test]
    fn what_was_published_before_goes_by_the_old_filters() {
        let mut record =
            Record::new(&Subscribe::group(Group::new("g").unwrap(), [Pattern::new("a.new").unwrap()]));
        record.past.push(Past {
            filters: vec!["a.old".into()],
            until: BTreeMap::from([("a".into(), 5)]),
            number: 0,
        });
        let wants = |subject: &str, at| record.wants(&Subject::new(subject).unwrap(), at);
        assert!(wants("a.old", 5) && !wants("a.old", 6));
        assert!(!wants("a.new", 5) && wants("a.new", 6));
    }

    #[test]
    fn filters_are_forgotten_when_all_of_theirs_is_settled() {
        let group = Group::new("g").unwrap();
        let mut record = Record::new(&Subscribe::group(group, [Pattern::new("a.s0").unwrap()]));
        for n in 1..=200_u64 {
            let filter = SmolStr::new(format!("a.s{}", n % 100));
            record.follow(vec![filter], BTreeMap::from([("a".into(), n), ("b".into(), 7)]));
        }
        assert_eq!((record.changes, record.past.len()), (200, MOST_PAST));
        for n in 1..=200_u64 {
            let subject = Subject::new(format!("a.s{}", (n - 1) % 100)).unwrap();
            assert!(record.wants(&subject, n), "the message at {n} is still wanted");
        }
        assert_eq!(record.after_changes(199).map(|past| past.until["a"]), Some(200));
        record.forget(&BTreeMap::from([("a".into(), 198)]), u64::MAX);
        assert_eq!(record.past.len(), 2);
        record.begin_anew(&"a".into(), Timestamp::UNIX_EPOCH);
        assert!(record.wants(&Subject::new("a.s0").unwrap(), 1), "the new stream goes by the latest filters");
    }
}
