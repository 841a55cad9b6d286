//! Reads the body of an HTTP submission in Logthon's format: which bodies are accepted, and with which problems
//! others are refused.
//!
//! Valid JSON is preferred to a repair. Consecutive valid records are each read unchanged; only text after the last
//! of them that is not a valid record is repaired or, if that fails, kept as the raw text of that record.

use std::borrow::Cow;

use event_client::log::{LogRecord, Severity};
use jiff::Timestamp;
use serde_json::Value;
use serde_json::value::RawValue;

use super::encoding::{self, Text};
use super::fields::{Refusal, record_of};
use super::problem::{Problem, raw};
use super::{repair, time};

/// JSON nested deeper than this is refused: clients that read the stored records have limits of their own.
pub(crate) const MOST_LEVELS: usize = 64;

/// Reads a JSON body: valid records unchanged; a broken record is repaired and keeps its raw text.
pub(crate) fn read(body: &[u8]) -> Result<Vec<LogRecord>, Vec<Problem>> {
    if body.is_empty() {
        return Err(vec![Problem::no_body()]);
    }
    let Text { text, whole } = encoding::decode(body);
    if let Some(records) = exact(&numbers_as_text(&text), &text, whole)? {
        return Ok(records);
    }
    match repaired(&text) {
        Some(record) => record.map(|record| vec![record]),
        None => {
            let error = serde_json::from_str::<&RawValue>(&text).err();
            let error = error.or_else(|| serde_json::from_str::<Value>(&text).err());
            let (position, error) =
                error.map_or_else(|| (0, "not a record".into()), |e| (position_of(&text, &e), e.to_string()));
            Err(vec![Problem::not_json(position, error)])
        }
    }
}

/// Returns the records of a body that begins with a valid one; `None` when it does not. `text` is the body as it was
/// sent; `whole` is false when some of its bytes were invalid.
fn exact(sound: &str, text: &str, whole: bool) -> Result<Option<Vec<LogRecord>>, Vec<Problem>> {
    let (mut records, mut last, mut rest) = (Vec::new(), 0, sound);
    while let Some((value, after)) = first_value(rest) {
        let alone = records.is_empty() && after.trim().is_empty();
        if deeper_than(value, MOST_LEVELS) {
            if alone {
                return Err(vec![Problem::deeper_than(MOST_LEVELS)]);
            }
            break;
        }
        if records.is_empty() && continues(after) {
            return Ok(None);
        }
        if !value.starts_with('{') {
            if alone {
                return Err(vec![Problem::not_an_object(raw_of(value))]);
            }
            break;
        }
        match record_of(value) {
            Ok(mut record) => {
                let marked = !whole && value.contains(char::REPLACEMENT_CHARACTER);
                record.raw = marked.then(|| value.to_owned());
                records.push(record);
            }
            Err(Refusal::Problems(problems)) if alone => return Err(problems),
            Err(_) => break,
        }
        last = sound.len() - after.len() - value.len();
        // Records are separated by nothing, a line break, a comma, or RFC 7464's separator.
        rest = after
            .trim_start_matches(|sign: char| sign.is_ascii_whitespace() || matches!(sign, ',' | '\u{1e}'));
    }
    let Some(record) = records.last_mut() else { return Ok(None) };
    if !rest.trim().is_empty() {
        // If numbers became text, `sound` differs from the sent body: then the whole body is kept.
        let sent = |from: usize| if sound == text { &text[from..] } else { text };
        match repaired(rest) {
            Some(Ok(mut more)) => {
                more.raw = Some(sent(sound.len() - rest.len()).to_owned());
                records.push(more);
            }
            _ => record.raw = Some(sent(last).to_owned()),
        }
    }
    Ok(Some(records))
}

/// Returns the first JSON value of a text, and the rest.
fn first_value(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let value = values.next()?.ok()?.get();
    Some((value, &text[values.byte_offset()..]))
}

/// Returns whether this is the rest of an object whose sender does not escape: `x"}` in its message looked like the
/// end.
fn continues(after: &str) -> bool {
    let quoted = |text: &'_ str| text.trim_start().strip_prefix('"').map(str::to_owned);
    let key = quoted(after).and_then(|rest| quoted(rest.trim_start().strip_prefix(',')?));
    key.and_then(|key| Some(repair::KEYS.contains(&key.split_once('"')?.0))).unwrap_or(false)
}

/// Returns the repaired record. `None` when it cannot be repaired.
fn repaired(text: &str) -> Option<Result<LogRecord, Vec<Problem>>> {
    let fields = serde_json::to_string(&repair::repair(text)?).ok()?;
    if deeper_than(&fields, MOST_LEVELS) {
        return None;
    }
    match record_of(&fields) {
        Ok(record) => Some(Ok(LogRecord { raw: Some(text.to_owned()), ..record })),
        Err(Refusal::Problems(problems)) => Some(Err(problems)),
        Err(Refusal::Unsound) => None,
    }
}

/// Converts `NaN`, `Infinity` and `-Infinity`, which Python writes and which are not JSON, to text.
fn numbers_as_text(text: &str) -> Cow<'_, str> {
    const WORDS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];
    if !WORDS[..2].iter().any(|word| memchr::memmem::find(text.as_bytes(), word.as_bytes()).is_some()) {
        return Cow::Borrowed(text);
    }
    let mut sound = String::with_capacity(text.len() + 16);
    // `inside` is true between unescaped quotes, that is within a string.
    let (mut rest, mut inside) = (text, false);
    while let Some(first) = rest.chars().next() {
        let word = WORDS.iter().find(|word| !inside && rest.starts_with(**word));
        let length = match (word, first) {
            (Some(word), _) => word.len(),
            (None, '\\') if inside => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => first.len_utf8(),
        };
        inside ^= first == '"';
        let (token, after) = rest.split_at(length);
        match word {
            Some(word) => sound.extend(["\"", word, "\""]),
            None => sound.push_str(token),
        }
        rest = after;
    }
    Cow::Owned(sound)
}

/// Returns FastAPI's problem for a body that is not declared as JSON: FastAPI treats it as a text.
pub(crate) fn unmarked(body: &[u8]) -> Vec<Problem> {
    vec![Problem::not_an_object(raw(&String::from_utf8_lossy(body)))]
}

fn raw_of(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).unwrap_or_else(|_| raw(&Value::Null))
}

fn position_of(text: &str, error: &serde_json::Error) -> usize {
    let before: usize =
        text.split('\n').take(error.line().saturating_sub(1)).map(|line| line.len() + 1).sum();
    (before + error.column()).saturating_sub(1)
}

/// Returns whether valid JSON is nested to more than this number of levels.
fn deeper_than(json: &str, levels: usize) -> bool {
    let (mut depth, mut inside, mut escaped) = (0_usize, false, false);
    json.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if inside => escaped = true,
            b'"' => inside = !inside,
            b'{' | b'[' if !inside => depth += 1,
            b'}' | b']' if !inside => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > levels
    })
}

/// Returns the severity of a query parameter: OpenTelemetry's number or a level word.
pub(crate) fn severity_of(text: &str) -> Option<Severity> {
    let number = text.parse::<u8>().ok().filter(|number| (1..=24).contains(number)).map(Severity::from);
    number.or_else(|| Severity::from_word(text))
}

/// Returns the time of a query parameter: as in a record, and also any number of seconds, because 0 selects all
/// records.
pub(crate) fn time_from(text: &str) -> Option<Timestamp> {
    time::of_text(text).or_else(|| Timestamp::from_second(text.trim().parse().ok()?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(body: &[u8]) -> LogRecord {
        let mut records = read(body).expect("a record");
        assert_eq!(records.len(), 1);
        records.remove(0)
    }

    fn said(body: &str) -> String {
        serde_json::to_string(&read(body.as_bytes()).expect_err("refused")).expect("JSON")
    }

    #[test]
    fn the_documented_shape_keeps_its_time_and_its_ids() {
        let body = r#"{"timestamp":"2026-01-01T00:00:00.016764227Z","service":"s","level":"Warning","message":"m",
            "trace_id":"t","metadata":{"request_id":"r","n":1.5}}"#;
        let record = one(body.as_bytes());
        assert_eq!(record.time.to_string(), "2026-01-01T00:00:00.016764227Z");
        assert_eq!((record.trace_id.as_deref(), record.request_id.as_deref()), (Some("t"), Some("r")));
        assert_eq!((record.severity, record.level.as_str()), (Severity::WARN, "Warning"));
        assert_eq!(Value::Object(record.attributes.into_map()), json!({"request_id": "r", "n": 1.5}));
        assert_eq!(record.raw, None);
    }

    #[test]
    fn refusals_have_fastapis_shape() {
        let missing =
            r#"[{"type":"missing","loc":["body","message"],"msg":"Field required","input":{"service":"x"}}]"#;
        assert_eq!(said(r#"{"service":"x"}"#), missing);
        let number = r#"[{"type":"string_type","loc":["body","message"],"msg":"Input should be a valid string","input":5}]"#;
        assert_eq!(said(r#"{"service":"x","message":5}"#), number);
        assert!(said("[1]").contains(r#""type":"model_attributes_type","loc":["body"]"#));
        assert!(
            said(r#"{"service":"x","message":"a","metadata":[1]}"#)
                .contains(r#""dict_type","loc":["body","metadata"]"#)
        );
        assert!(said("{nonsense").contains(
            r#""json_invalid","loc":["body",1],"msg":"JSON decode error","input":{},"ctx":{"error":"#
        ));
        assert!(said("").contains(r#""missing","loc":["body"]"#));
    }

    #[test]
    fn depth_is_bounded_far_and_near() {
        for levels in [70, 5000] {
            let deep = format!(
                r#"{{"service":"x","message":"a","metadata":{{"k":{}{}}}}}"#,
                "[".repeat(levels),
                "]".repeat(levels)
            );
            assert!(said(&deep).contains("nested deeper than 64 levels"), "{levels}");
        }
        let fine = format!(
            r#"{{"service":"x","message":"a","metadata":{{"k":{}{}}}}}"#,
            "[".repeat(60),
            "]".repeat(60)
        );
        assert!(read(fine.as_bytes()).is_ok());
    }

    #[test]
    fn half_a_surrogate_pair_is_a_repair() {
        let record = one(br#"{"service":"x","message":"a\ud800b"}"#);
        assert_eq!(record.message, r"a\ud800b");
        assert!(record.repaired());
    }

    #[test]
    fn bytes_that_are_not_utf8_are_a_repair() {
        let record = one(b"{\"service\":\"x\",\"message\":\"caf\xe9\"}");
        assert_eq!(record.message, "caf\u{fffd}");
        assert!(record.repaired());
    }
}
