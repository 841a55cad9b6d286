//! The patterns of a group on a topic over time: changed patterns apply to entries that are published after the change.

use super::codec::EntryId;
use event_transport::subject::{Pattern, Subject};

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

    /// Whether the group receives every entry after `id`, as `>` is among its patterns.
    pub(super) fn take_all_after(&self, id: EntryId) -> bool {
        let first = self.0.iter().rposition(|(from, _)| *from <= id).unwrap_or(0);
        let all = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.as_str() == ">");
        !self.0.is_empty() && self.0[first..].iter().all(|(_, patterns)| all(patterns))
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

    #[test]
    fn a_group_takes_all_entries_when_each_list_that_still_applies_does() {
        let filters = Filters::parse("0-0 a.>\n10-1 b.> >\n20-0 >");
        let after = |ms, seq| filters.take_all_after(EntryId { ms, seq });
        assert!(!after(0, 0) && !after(10, 0));
        assert!(after(10, 1) && after(15, 0) && after(30, 0));
        assert!(!Filters::parse("0-0 >\n10-1 b.>").take_all_after(EntryId { ms: 5, seq: 0 }));
        assert!(Filters::parse("10-1 >").take_all_after(EntryId::default()));
        assert!(!Filters::parse("").take_all_after(EntryId::default()));
    }
}
