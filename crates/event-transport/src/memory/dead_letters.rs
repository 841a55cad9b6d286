//! Dead letters in the order in which they were rejected. Each one keeps the pin of its message in the log.

use std::collections::BTreeMap;

use jiff::Timestamp;
use smol_str::{SmolStr, format_smolstr};

use super::group::Entry;
use crate::delivery::Rejection;
use crate::subject::Group;
use crate::{DeadLetter, DeadLetterFilter};

#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    letters: BTreeMap<u64, StoredDeadLetter>,
    next: u64,
}

#[derive(Debug)]
pub(super) struct StoredDeadLetter {
    pub(super) group: Group,
    pub(super) entry: Entry,
    rejection: Rejection,
    dead_at: Timestamp,
}

impl DeadLetters {
    pub(super) fn add(&mut self, group: Group, entry: Entry, rejection: Rejection, dead_at: Timestamp) {
        self.next += 1;
        self.letters.insert(self.next, StoredDeadLetter { group, entry, rejection, dead_at });
    }

    /// Returns the numbers of the dead letters that `filter` selects.
    pub(super) fn chosen(&self, filter: &DeadLetterFilter) -> Vec<u64> {
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        (self.letters.iter())
            .filter(|(id, letter)| letter.matches(**id, filter))
            .map(|(id, _)| *id)
            .take(limit)
            .collect()
    }

    pub(super) fn get(&self, id: u64) -> Option<&StoredDeadLetter> {
        self.letters.get(&id)
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<StoredDeadLetter> {
        self.letters.remove(&id)
    }

    pub(super) fn count(&self, group: &Group) -> u64 {
        self.letters.values().filter(|letter| letter.group == *group).count() as u64
    }
}

impl StoredDeadLetter {
    fn matches(&self, id: u64, filter: &DeadLetterFilter) -> bool {
        (filter.ids.is_empty() || filter.ids.contains(&name(id)))
            && filter.group.as_ref().is_none_or(|group| *group == self.group)
            && filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&self.entry.message.subject))
            && filter.reason.is_none_or(|reason| reason == self.rejection.reason)
    }

    /// Returns the dead letter as an operator sees it.
    pub(super) fn letter(&self, id: u64) -> DeadLetter {
        let entry = &self.entry;
        let message = (*entry.message).clone();
        let mut letter =
            DeadLetter::new(name(id), self.group.clone(), message, self.rejection.reason, self.dead_at);
        letter.error = self.rejection.error.clone();
        letter.attempts = entry.attempt;
        letter.published_at = entry.published_at;
        letter.first_attempt_at = entry.first_attempt_at.unwrap_or(self.dead_at);
        letter
    }
}

fn name(id: u64) -> SmolStr {
    format_smolstr!("{id}")
}
