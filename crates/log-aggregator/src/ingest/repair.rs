//! Repairs the broken JSON of hand-written clients: unescaped text and truncated bodies.
//!
//! A client that builds JSON with `printf` does not escape quotes, backslashes and line breaks in a text, and
//! truncates a body that exceeds its buffer. The intended record can be recovered because such clients write the same
//! few keys: a quote ends a text only if one of the missing keys or the end of the object follows. The message may
//! itself contain text that looks like such an end; the message then ends at the most certain of these ends, and at
//! the last one of equal certainty.

use serde_json::{Map, Value};

/// The keys of a submission, in any order.
pub(super) const KEYS: [&str; 9] = [
    "service",
    "level",
    "message",
    "metadata",
    "timestamp",
    "request_id",
    "trace_id",
    "span_id",
    "correlation_id",
];

/// Bodies longer than this, in bytes, are not repaired: finding the ends of texts takes quadratic time at worst, and
/// clients that do not escape have small buffers.
pub(super) const MOST_BYTES: usize = 64 * 1024;

/// Returns the object that the sender tried to write. `None` when it has no service or no beginning of a message.
pub(super) fn repair(body: &str) -> Option<Map<String, Value>> {
    if body.len() > MOST_BYTES {
        return None;
    }
    let fields = Scan { rest: body.trim_start(), keys: Some(&KEYS) }.object();
    let text = |key: &str| fields.get(key).is_some_and(Value::is_string);
    (text("service") && text("message")).then_some(fields)
}

struct Scan<'a> {
    rest: &'a str,
    /// The possible keys; `None` when any key is possible.
    keys: Option<&'static [&'static str]>,
}

impl<'a> Scan<'a> {
    /// Reads fields until the text cannot be parsed.
    fn object(mut self) -> Map<String, Value> {
        let mut fields = Map::new();
        if !self.take('{') {
            return fields;
        }
        while let Some(key) = self.key() {
            let Some(value) = self.value(key, &fields) else { break };
            fields.insert(key.to_owned(), value);
            if !self.take(',') {
                break;
            }
        }
        fields
    }

    fn take(&mut self, sign: char) -> bool {
        let rest = self.rest.trim_start().strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn key(&mut self) -> Option<&'a str> {
        let (key, rest) = self.rest.trim_start().strip_prefix('"')?.split_once('"')?;
        self.rest = rest.trim_start().strip_prefix(':')?.trim_start();
        self.keys.is_none_or(|keys| keys.contains(&key)).then_some(key)
    }

    fn value(&mut self, key: &str, seen: &Map<String, Value>) -> Option<Value> {
        let mut sound = serde_json::Deserializer::from_str(self.rest).into_iter::<Value>();
        let first = self.rest.chars().next()?;
        if first == '"' {
            let inside = &self.rest[1..];
            let (text, after) = self.text(inside, key, seen);
            self.rest = after;
            return Some(Value::String(text));
        }
        if let Some(Ok(value)) = sound.next() {
            self.rest = &self.rest[sound.byte_offset()..];
            return Some(value);
        }
        if first == '{' {
            let inner = Scan { rest: self.rest, keys: None }.object();
            self.rest = "";
            return Some(Value::Object(inner));
        }
        // Not a valid number or word: keep it as text.
        let end = self.rest.find([',', '}']).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        self.rest = after;
        Some(Value::String(word.trim_end().to_owned()))
    }

    /// Returns the text that begins here, and the rest after its closing quote.
    fn text(&self, inside: &'a str, key: &str, seen: &Map<String, Value>) -> (String, &'a str) {
        let mut ends = inside.match_indices('"').map(|(at, _)| at).filter_map(|at| {
            let follows = &inside[at + 1..];
            let end = (!escaped(&inside[..at], follows)).then(|| self.end(follows, key, seen)).flatten();
            end.map(|end| (at, end))
        });
        // The message cannot be told from the following fields before the level was read; afterwards it can.
        let last = key == "message" && self.keys.is_some() && seen.contains_key("level");
        let end = if last {
            // Of several possible truncations, use the first: the rest belongs to the truncated field.
            ends.reduce(|best, next| if next.1 >= best.1 && next.1 != Sure::Cut { next } else { best })
        } else {
            ends.next()
        };
        let (text, after) = match end {
            Some((at, _)) => (&inside[..at], &inside[at + 1..]),
            None => (inside, ""),
        };
        (unescape(text), after)
    }

    /// Returns how certainly a quote before `follows` closes the value of `key`; `None` when it cannot.
    fn end(&self, follows: &str, key: &str, seen: &Map<String, Value>) -> Option<Sure> {
        let follows = follows.trim_start();
        if follows.is_empty() {
            return Some(Sure::Cut);
        }
        if let Some(after) = follows.strip_prefix('}') {
            let after = after.trim();
            // In the metadata, a second brace closes the whole object.
            let last = after.is_empty() || (self.keys.is_none() && after == "}");
            return last.then_some(Sure::Object);
        }
        let next = follows.strip_prefix(',')?.trim_start();
        if next.is_empty() {
            return Some(Sure::Cut);
        }
        let next = next.strip_prefix('"')?;
        let Some(keys) = self.keys else {
            return match next.split_once('"') {
                Some((_, after)) if !after.trim_start().starts_with(':') && !after.is_empty() => None,
                _ => Some(Sure::Key),
            };
        };
        let mut open = keys.iter().filter(|other| **other != key && !seen.contains_key(**other));
        open.find_map(|other| match next.strip_prefix(other) {
            Some(after) => {
                is_key_end(after).then_some(if *other == "metadata" { Sure::Metadata } else { Sure::Key })
            }
            None => other.starts_with(next).then_some(Sure::Cut),
        })
    }
}

/// Possible ends of a text, the most certain last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sure {
    /// The body is truncated here or in the next key.
    Cut,
    /// Another key follows.
    Key,
    /// The object ends.
    Object,
    /// The metadata follow, which all these clients write after the message.
    Metadata,
}

fn is_key_end(after: &str) -> bool {
    if after.is_empty() {
        return true;
    }
    let Some(after) = after.strip_prefix('"') else { return false };
    let after = after.trim_start();
    after.is_empty() || after.starts_with(':')
}

/// Returns whether a quote after `before` is escaped by a sender that escapes. The text of a sender that does not
/// escape may end with a backslash; then the quote is the last one that can close the value.
fn escaped(before: &str, follows: &str) -> bool {
    let backslashes = before.len() - before.trim_end_matches('\\').len();
    backslashes % 2 == 1 && follows.contains('"')
}

/// Returns the unescaped text if it follows the rules of JSON, otherwise the text unchanged.
fn unescape(text: &str) -> String {
    if !text.contains('\\') {
        return text.to_owned();
    }
    serde_json::from_str(&format!("\"{text}\"")).unwrap_or_else(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> &'a str {
        fields[key].as_str().expect("a text")
    }

    #[test]
    fn quotes_in_the_message_stay_in_the_message() {
        let body = r#"{"service":"c","level":"INFO","message":"created: {"filename":"a.txt","size":6,"message":"File 'a.txt'"}","metadata":{"timestamp":"1757","container_id":"x"}}"#;
        let fields = repair(body).expect("clear enough");
        assert_eq!(
            text(&fields, "message"),
            r#"created: {"filename":"a.txt","size":6,"message":"File 'a.txt'"}"#
        );
        assert_eq!(fields["metadata"], serde_json::json!({"timestamp": "1757", "container_id": "x"}));
        assert_eq!((text(&fields, "service"), text(&fields, "level")), ("c", "INFO"));
    }

    #[test]
    fn a_cut_anywhere_after_the_message_began_keeps_what_there_was() {
        let body = r#"{"service":"c","level":"INFO","message":"all is well","metadata":{"timestamp":"17570","id":"xy"}}"#;
        let begin = body.find("all").expect("the message");
        for end in begin..body.len() {
            let fields = repair(&body[..end]).unwrap_or_else(|| panic!("cut at {end}"));
            let message = text(&fields, "message");
            assert!("all is well".starts_with(message), "cut at {end}: {message:?}");
        }
        assert!(repair(&body[..20]).is_none(), "no message, no record");
    }

    #[test]
    fn a_cut_value_in_the_metadata_is_kept_as_far_as_it_came() {
        let fields = repair(r#"{"service":"c","message":"m","metadata":{"timestamp":"17570","id":"x"#)
            .expect("a record");
        assert_eq!(fields["metadata"], serde_json::json!({"timestamp": "17570", "id": "x"}));
    }

    #[test]
    fn line_breaks_and_lone_backslashes_stand_as_they_are() {
        let fields = repair("{\"service\":\"c\",\"message\":\"two\nlines in C:\\path\",\"level\":\"INFO\"}")
            .expect("a record");
        assert_eq!(text(&fields, "message"), "two\nlines in C:\\path");
        assert_eq!(text(&fields, "level"), "INFO");
    }

    #[test]
    fn what_is_no_record_is_not_made_one() {
        for body in
            ["", "hello", "{", "{}", "[1,", r#"{"service":"c"#, r#"{"a":"b","message":"m"#, "\"service\""]
        {
            assert_eq!(repair(body), None, "{body}");
        }
        assert_eq!(repair(&format!(r#"{{"service":"c","message":"{}"#, "x".repeat(MOST_BYTES))), None);
    }

    proptest! {
        /// The message is recovered unchanged, unless the unescaped body happens to be valid JSON.
        #[test]
        fn an_unescaped_message_comes_back(message in "[ -\\[\\]-~\n\t]{0,200}", level in "[A-Z]{1,8}") {
            let body = format!(r#"{{"service":"sink","level":"{level}","message":"{message}","metadata":{{"timestamp":"17","container_id":"c","container_name":"n"}}}}"#);
            // The messages contain no backslashes: a text with valid JSON escapes cannot be told from an escaped
            // text.
            if serde_json::from_str::<Value>(&body).is_err() {
                let fields = repair(&body).expect("the format is known");
                prop_assert_eq!(text(&fields, "message"), message);
                prop_assert_eq!(text(&fields, "level"), level);
                prop_assert_eq!(fields["metadata"]["container_name"].as_str(), Some("n"));
            }
        }

        #[test]
        fn nothing_makes_it_panic(body in "\\PC{0,300}", cut in 0..400_usize) {
            let _ = repair(&body);
            let framed = format!(r#"{{"service":"s","message":"{body}","metadata":{{"k":"{body}"#);
            let end = framed.char_indices().map(|(at, _)| at).nth(cut).unwrap_or(framed.len());
            let _ = repair(&framed[..end]);
        }
    }
}
