//! The patterns of a group and the positions from which they apply: a change applies to messages published after it.

use event_transport::subject::{Pattern, Subject};

use super::error::{Sql, damaged};

/// Lists of patterns, each with the position after which it applies; the latest is last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Filters(Vec<(i64, Vec<Pattern>)>);

impl Filters {
    /// `patterns` for all messages.
    pub(super) fn new(patterns: Vec<Pattern>) -> Self {
        Self(vec![(0, patterns)])
    }

    /// Reads the text that [`Filters::to_text`] writes.
    pub(super) fn parse(column: &str) -> Sql<Self> {
        let line = |line: &str| -> Option<(i64, Vec<Pattern>)> {
            let mut words = line.split(' ');
            let from = words.next()?.parse().ok()?;
            Some((from, words.map(|word| Pattern::new(word).ok()).collect::<Option<_>>()?))
        };
        column
            .lines()
            .map(line)
            .collect::<Option<Vec<_>>>()
            .filter(|lines| !lines.is_empty())
            .map(Self)
            .ok_or_else(|| damaged("a group's filters cannot be read"))
    }

    /// Writes one line per change: the position and the patterns.
    pub(super) fn to_text(&self) -> String {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(from, patterns)| {
                let words: Vec<&str> = patterns.iter().map(Pattern::as_str).collect();
                format!("{from} {}", words.join(" "))
            })
            .collect();
        lines.join("\n")
    }

    /// The patterns that apply to new messages.
    pub(super) fn latest(&self) -> &[Pattern] {
        self.0.last().map(|(_, patterns)| patterns.as_slice()).unwrap_or_default()
    }

    /// Applies `patterns` to messages after position `end`, and removes the lists that no message after `cursor` needs.
    pub(super) fn change(&mut self, patterns: Vec<Pattern>, end: i64, cursor: i64) {
        self.0.retain(|(from, _)| *from < end);
        self.0.push((end, patterns));
        let needed = self.0.iter().rposition(|(from, _)| *from <= cursor).unwrap_or(0);
        self.0.drain(..needed);
    }

    /// Whether the group receives a message with `subject` at position `seq`.
    pub(super) fn matches(&self, subject: &Subject, seq: i64) -> bool {
        let since = self.0.iter().rev().find(|(from, _)| *from < seq).or(self.0.first());
        since.is_some_and(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(subject)))
    }

    /// The patterns of all lists.
    pub(super) fn all(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter().flat_map(|(_, patterns)| patterns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_holds_for_what_comes_after_it() {
        let patterns = |text: &str| vec![Pattern::new(text).unwrap()];
        let mut filters = Filters::new(patterns("a.>"));
        filters.change(patterns("b.>"), 10, 3);
        let (a, b) = (Subject::new("a.x").unwrap(), Subject::new("b.x").unwrap());
        assert!(filters.matches(&a, 10) && !filters.matches(&b, 10));
        assert!(!filters.matches(&a, 11) && filters.matches(&b, 11));
        assert_eq!(Filters::parse(&filters.to_text()).unwrap(), filters);
        assert_eq!(filters.latest(), patterns("b.>"));

        // Once the cursor has passed the first change, the oldest patterns are not needed any more.
        filters.change(patterns("c.>"), 20, 12);
        assert_eq!(filters.all().count(), 2);
        // A second change before anything was published replaces the first.
        filters.change(patterns("d.>"), 20, 12);
        assert_eq!(filters.all().map(Pattern::as_str).collect::<Vec<_>>(), ["b.>", "d.>"]);
        for text in ["", "x a", "1 A"] {
            assert!(Filters::parse(text).is_err());
        }
    }
}
