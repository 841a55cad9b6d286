//! How far a keyed group has come: one record, which its leader alone can write.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::subject::{Pattern, Subject};
use crate::transport::nats::group::Record;

/// The record of a keyed group: who leads it, and what is settled.
///
/// It is written over itself with the sequence of its last writing as the condition, so whoever was overtaken while
/// it stood still can settle nothing any more, whatever it believes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Progress {
    pub(super) connection: SmolStr,
    pub(super) member: SmolStr,
    /// Nobody leads: the last leader took leave.
    #[serde(default)]
    pub(super) left: bool,
    /// Makes each renewal another record.
    #[serde(default)]
    pub(super) beat: u64,
    /// The group's when this was written; what it says is void when the group has moved since.
    #[serde(default)]
    pub(in super::super) epoch: u64,
    /// How many changes of the group's filters its leader knew of.
    #[serde(default)]
    pub(in super::super) changes: u64,
    #[serde(default)]
    pub(in super::super) topics: BTreeMap<SmolStr, Mark>,
}

/// How far a group has come in one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(in super::super) struct Mark {
    /// When the stream was created that it counts in; `None` before anybody looked.
    pub(in super::super) made: Option<Timestamp>,
    /// Everything below is settled, open, or not for the group.
    pub(in super::super) next: u64,
    /// What is not settled below `next`.
    pub(in super::super) open: BTreeMap<u64, Attempted>,
}

/// What happened to a message so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Attempted {
    /// Attempts that were begun. Written before a handler sees the message, so that a crash counts.
    pub(super) attempts: u32,
    /// Unix milliseconds of the next one; 0 is at once.
    pub(in super::super) due: i64,
    /// Unix milliseconds of the first one; 0 is unknown.
    pub(super) first: i64,
}

/// A [`Mark`] as it is written: short, for it is written with every settlement.
#[derive(Serialize, Deserialize)]
struct Written {
    next: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Timestamp>,
    /// The first, then the distance from one to the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<u64>,
    /// Sequence, attempts, due and first; the last two only where there is something to say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tried: Vec<Vec<i64>>,
}

impl From<Mark> for Written {
    fn from(mark: Mark) -> Self {
        let mut last = 0;
        let open =
            mark.open.keys().map(|sequence| sequence - std::mem::replace(&mut last, *sequence)).collect();
        let tried = mark
            .open
            .iter()
            .filter(|(_, tried)| **tried != Attempted::default())
            .map(|(sequence, tried)| {
                let mut line = vec![*sequence as i64, i64::from(tried.attempts), tried.due, tried.first];
                while line.last() == Some(&0) && line.len() > 2 {
                    line.pop();
                }
                line
            })
            .collect();
        Self { next: mark.next, made: mark.made, open, tried }
    }
}

impl From<Written> for Mark {
    fn from(written: Written) -> Self {
        let mut last = 0_u64;
        let mut open: BTreeMap<u64, Attempted> = written
            .open
            .into_iter()
            .map(|distance| {
                last = last.saturating_add(distance);
                (last, Attempted::default())
            })
            .collect();
        for line in written.tried {
            let at = |index: usize| line.get(index).copied().unwrap_or_default();
            if let Some(tried) = open.get_mut(&(at(0) as u64)) {
                *tried = Attempted { attempts: u32::try_from(at(1)).unwrap_or(0), due: at(2), first: at(3) };
            }
        }
        Self { made: written.made, next: written.next, open }
    }
}

impl Mark {
    /// The first message that the group still needs.
    pub(in super::super) fn floor(&self) -> u64 {
        self.open.keys().next().copied().unwrap_or(self.next)
    }
}

/// A stretch of a topic that a leader had read under filters that held no longer, and that is read again.
#[derive(Debug)]
pub(super) struct Again {
    /// It ends before this place.
    below: u64,
    /// What they matched was taken then.
    filters: Vec<Pattern>,
}

impl Again {
    /// Whether a message was taken already.
    pub(super) fn took(&self, subject: &Subject, sequence: u64) -> bool {
        sequence < self.below && self.filters.iter().any(|filter| filter.matches(subject))
    }
}

/// Goes back to where the filters changed that a leader read under: it hears of a change a little after it holds, and what
/// the new filters match was passed over meanwhile. `changes` is how many it knew of.
pub(super) fn rewind(
    marks: &mut BTreeMap<SmolStr, Mark>,
    changes: u64,
    record: &Record,
) -> BTreeMap<SmolStr, Again> {
    let mut again = BTreeMap::new();
    if changes >= record.changes {
        return again;
    }
    let known = record.after_changes(changes);
    let Some(past) = known.or(record.past.last()) else { return again };
    for (topic, mark) in marks {
        let until = past.until.get(topic).copied().unwrap_or(0);
        if mark.next > until + 1 && !topic.starts_with('@') {
            let filters = known.map(|past| &past.filters).into_iter().flatten();
            let filters = filters.filter_map(|text| Pattern::new(text).ok()).collect();
            again.insert(topic.clone(), Again { below: mark.next, filters });
            mark.next = until + 1;
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            next in 0..u64::MAX / 4,
            open in proptest::collection::btree_map(
                0..(u64::MAX / 4),
                (0..5_u32, prop_oneof![Just(0), 1..i64::MAX], prop_oneof![Just(0), 1..i64::MAX]),
                0..20,
            ),
        ) {
            let open = open
                .into_iter()
                .map(|(sequence, (attempts, due, first))| (sequence, Attempted { attempts, due, first }))
                .collect();
            let mark = Mark { made: Some(Timestamp::UNIX_EPOCH), next, open };
            let text = serde_json::to_string(&mark).unwrap();
            prop_assert_eq!(serde_json::from_str::<Mark>(&text).unwrap(), mark);
        }
    }

    #[test]
    fn it_is_short() {
        let open = (1_000_000..1_001_000).map(|sequence| (sequence, Attempted::default())).collect();
        let text = serde_json::to_string(&Mark { made: None, next: 1_001_000, open }).unwrap();
        assert!(text.len() < 2100, "{} bytes", text.len());
        assert_eq!(serde_json::to_string(&Mark::default()).unwrap(), r#"{"next":0}"#);
    }
}
