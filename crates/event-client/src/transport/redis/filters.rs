//! The patterns of a group on a topic over time: changed patterns apply to entries that are published after the change.

use super::codec::EntryId;
use crate::subject::{Pattern, Subject};

/// Lists of patterns, each with the entry after which it applies, the latest last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Filters(Vec<(EntryId, Vec<Pattern>)>);

impl Filters {
    /// Parses lines of an id and patterns; malformed lines are ignored.
    pub(super) fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let mut words = line.split(' ');
            let from = words.next()?.parse().ok()?;
            Some((from, words.filter_map(|word| Pattern::new(word).ok()).collect()))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// Whether the group receives the entry `id`.
    pub(super) fn matches(&self, subject: &Subject, id: EntryId) -> bool {
        let since = self.0.iter().rev().find(|(from, _)| *from < id).or(self.0.first());
        since.is_some_and(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(subject)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_applies_to_later_entries() {
        let filters = Filters::parse("0-0 a.>\n10-1 b.>");
        let (a, b) = (Subject::new("a.x").unwrap(), Subject::new("b.x").unwrap());
        let at = |seq| EntryId { ms: 10, seq };
        assert!(filters.matches(&a, at(1)) && !filters.matches(&b, at(1)));
        assert!(!filters.matches(&a, at(2)) && filters.matches(&b, at(2)));
        assert!(!Filters::parse("").matches(&a, at(1)));
    }
}
