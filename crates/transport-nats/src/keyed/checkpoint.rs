//! The progress of a keyed group: one record on the server, which only its leader can write.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use crate::client::Client;
use crate::group::Record;
use crate::kv;
use crate::names::token;
use event_transport::error::Result;
use event_transport::subject::{Group, Pattern, Subject};

/// The name of the replayed letters among the topics. No topic can have this name.
pub(in super::super) const REPLAYS: &str = "@replays";

/// The record of a keyed group: its leader and its settled messages.
///
/// Each write has the sequence of the last write as its condition, so a leader that was replaced while its process
/// was suspended can no longer settle anything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Progress {
    pub(super) connection: SmolStr,
    pub(super) member: SmolStr,
    /// There is no leader: the last one has resigned.
    #[serde(default)]
    pub(super) left: bool,
    /// Makes each renewal a different record.
    #[serde(default)]
    pub(super) beat: u64,
    /// The group's epoch when this was written. The record is void when the group has been moved since.
    #[serde(default)]
    pub(in super::super) epoch: u64,
    /// Number of changes of the group's filters that its leader knew of.
    #[serde(default)]
    pub(in super::super) changes: u64,
    #[serde(default)]
    pub(in super::super) topics: BTreeMap<SmolStr, Mark>,
}

/// The progress of a group in one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(in super::super) struct Mark {
    /// Creation time of the stream that the sequences refer to; `None` before the stream was looked up.
    pub(in super::super) made: Option<Timestamp>,
    /// All messages below this sequence are settled, open, or not for the group.
    pub(in super::super) next: u64,
    /// The unsettled messages below `next`.
    pub(in super::super) open: BTreeMap<u64, Attempted>,
}

/// The attempts of a message so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Attempted {
    /// Number of started attempts. Written before a handler receives the message, so that a crash counts.
    pub(super) attempts: u32,
    /// Unix milliseconds of the next attempt; 0 means at once.
    pub(in super::super) due: i64,
    /// Unix milliseconds of the first attempt; 0 means unknown.
    pub(super) first: i64,
}

/// The stored form of a [`Mark`]. It is short because it is written with every settlement.
#[derive(Serialize, Deserialize)]
struct Written {
    next: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made: Option<Timestamp>,
    /// The first sequence, then the distance from each one to the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    open: Vec<u64>,
    /// Sequence, attempts, due and first. Of the last two, trailing zeros are omitted.
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
    /// Returns the first sequence that the group still needs.
    pub(in super::super) fn floor(&self) -> u64 {
        self.open.keys().next().copied().unwrap_or(self.next)
    }
}

/// Returns the subject under which a keyed group's record is stored.
pub(super) fn subject(client: &Client, group: &Group) -> String {
    client.names.record("leader", &token(group.as_str()))
}

/// Returns the progress of a keyed group; `None` when it has had no leader since it was created or moved.
pub(in super::super) async fn progress(
    client: &Client,
    group: &Group,
    epoch: u64,
) -> Result<Option<Progress>> {
    let stored = kv::read::<Progress>(client, &subject(client, group)).await?;
    Ok(stored.map(|stored| stored.value).filter(|progress| progress.epoch == epoch))
}

/// A range of a topic that a leader read under outdated filters, and that is read again.
#[derive(Debug)]
pub(super) struct Again {
    /// End of the range, exclusive.
    below: u64,
    /// The outdated filters; messages that match them were taken in the first reading.
    filters: Vec<Pattern>,
}

impl Again {
    /// Returns whether a message was taken in the first reading.
    pub(super) fn took(&self, subject: &Subject, sequence: u64) -> bool {
        sequence < self.below && self.filters.iter().any(|filter| filter.matches(subject))
    }
}

/// Moves the marks back to where the filters changed that a leader read under. A leader learns of a change slightly
/// after it takes effect, and skips messages that the new filters match in between. `changes` is the number of
/// changes that it knew of.
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
