//! What a group receives, and since when: a change of patterns holds for what is published after it.

use crate::subject::{Pattern, Subject};

use super::error::{Sql, damaged};

/// Patterns with the position behind which they hold, the latest last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Filters(Vec<(i64, Vec<Pattern>)>);

impl Filters {
    /// `patterns` for everything.
    pub(super) fn new(patterns: Vec<Pattern>) -> Self {
        Self(vec![(0, patterns)])
    }

    /// Reads what [`Filters::to_text`] wrote.
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

    /// A line for each change.
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

    /// The patterns that hold now.
    pub(super) fn latest(&self) -> &[Pattern] {
        self.0.last().map(|(_, patterns)| patterns.as_slice()).unwrap_or_default()
    }

    /// Behind position `end` other patterns hold; what no message behind `cursor` needs is forgotten.
    pub(super) fn change(&mut self, patterns: Vec<Pattern>, end: i64, cursor: i64) {
        self.0.retain(|(from, _)| *from < end);
        self.0.push((end, patterns));
        let needed = self.0.iter().rposition(|(from, _)| *from <= cursor).unwrap_or(0);
        self.0.drain(..needed);
    }

    /// Whether a message at `seq` is received.
    pub(super) fn matches(&self, subject: &Subject, seq: i64) -> bool {
        let since = self.0.iter().rev().find(|(from, _)| *from < seq).or(self.0.first());
        since.is_some_and(|(_, patterns)| patterns.iter().any(|pattern| pattern.matches(subject)))
    }

    /// All patterns of any time.
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

        // Once the cursor has passed the first change, the oldest patterns are of no use.
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
