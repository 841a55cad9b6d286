//! Filters records; the store and the live stream apply the same conditions.

use std::borrow::Cow;

use event_client::log::{LogRecord, Severity};
use jiff::Timestamp;

use super::search::Search;
use super::time::{nanoseconds, place_of};

/// Conditions that a record has to meet, all of them; an empty filter matches every record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// The service is one of these; empty means any.
    pub services: Vec<String>,
    /// The severity is at least this.
    pub severity: Option<Severity>,
    /// Each of these words appears, case-insensitively, in the message, the service, the level, an id of trace, span,
    /// request or conversation, or in a name or value of the attributes.
    pub words: Vec<String>,
    /// The trace id is this.
    pub trace_id: Option<String>,
    /// The request id is this.
    pub request_id: Option<String>,
    /// The correlation id is this.
    pub correlation_id: Option<String>,
    /// The event time is this or later, by [`place_of`](super::place_of).
    pub since: Option<Timestamp>,
    /// The event time is before this, by [`place_of`](super::place_of).
    pub until: Option<Timestamp>,
}

impl Filter {
    /// Splits a search line into words that all have to appear; `"two words"` in quotes are one word, and `\"` is a
    /// literal quote. Every other backslash stands for itself, as in a path.
    pub fn words_of(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
        let mut letters = line.chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                '\\' if letters.peek() == Some(&'"') => word.extend(letters.next()),
                '"' => {
                    words.push(std::mem::take(&mut word));
                    quoted = !quoted;
                }
                space if space.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
                other => word.push(other),
            }
        }
        words.push(word);
        words.retain(|word| !word.is_empty());
        words
    }

    /// Returns whether a record meets every condition.
    pub fn matches(&self, record: &LogRecord) -> bool {
        let asked = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        (self.services.is_empty() || self.services.contains(&record.service))
            && self.severity.is_none_or(|least| record.severity >= least)
            && asked(&self.trace_id, &record.trace_id)
            && asked(&self.request_id, &record.request_id)
            && asked(&self.correlation_id, &record.correlation_id)
            && self.since.is_none_or(|since| place_of(record) >= nanoseconds(since))
            && self.until.is_none_or(|until| place_of(record) < nanoseconds(until))
            && self.says(record)
    }

    fn says(&self, record: &LogRecord) -> bool {
        if self.words.is_empty() {
            return true;
        }
        let ids = [&record.trace_id, &record.span_id, &record.request_id, &record.correlation_id];
        let texts = [&record.message, &record.service, &record.level].into_iter();
        let texts = texts.map(String::as_str).chain(ids.into_iter().flatten().map(String::as_str));
        Search::new(&self.words).finds(texts, &record.attributes)
    }
}

/// Returns the attributes as JSON text, the form in which they are stored.
pub(crate) fn attributes_text(record: &LogRecord) -> Cow<'_, str> {
    record.attributes.to_json()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_line_is_words_and_phrases() {
        assert_eq!(Filter::words_of(r#" Card  "was Refused" 42"#), ["Card", "was Refused", "42"]);
        assert_eq!(Filter::words_of(r#"half "open phrase"#), ["half", "open phrase"]);
        assert!(Filter::words_of(r#"  "" "#).is_empty());
        assert_eq!(Filter::words_of(r#"C:\Temp\x "a \" b" \\server"#), [r"C:\Temp\x", "a \" b", r"\\server"]);
        assert_eq!(Filter::words_of("\"one\ntwo\""), ["one\ntwo"]);
    }

    #[test]
    fn every_condition_has_to_hold() {
        let mut record = LogRecord::new("billing", "WARN", "Card was refused");
        record.attributes.insert("order".into(), "A-17".into());
        record.trace_id = Some("t1".into());
        let mut filter = Filter {
            services: vec!["billing".into(), "orders".into()],
            severity: Some(Severity::WARN),
            words: Filter::words_of("refused a-17"),
            trace_id: Some("t1".into()),
            since: Some(record.time),
            ..Filter::default()
        };
        assert!(filter.matches(&record));
        filter.severity = Some(Severity::ERROR);
        assert!(!filter.matches(&record));
        filter.severity = None;
        filter.until = Some(record.time);
        assert!(!filter.matches(&record), "the end of a range is not part of it");
        filter.until = None;
        filter.words.push("absent".into());
        assert!(!filter.matches(&record));
    }
}
