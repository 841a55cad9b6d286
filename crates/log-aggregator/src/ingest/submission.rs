//! One submission over HTTP in Logthon's shape: what is accepted, what is refused and how that is said.

use event_client::log::{LogRecord, Severity};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::repair;

/// JSON nested deeper than this is refused: readers of what we answer have limits of their own.
pub(crate) const MOST_LEVELS: usize = 64;

/// What is wrong with a body, one entry of FastAPI's `detail`.
#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<Value>,
    msg: &'static str,
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

impl Problem {
    /// A parameter of the query that should have been a whole number.
    pub(crate) fn not_an_integer(name: &str, value: &str) -> Self {
        let msg = "Input should be a valid integer, unable to parse string as an integer";
        Self {
            kind: "int_parsing",
            loc: vec!["query".into(), name.into()],
            msg,
            input: value.into(),
            ctx: None,
        }
    }

    fn not_an_object(input: Value) -> Self {
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Self { kind: "model_attributes_type", loc: vec!["body".into()], msg, input, ctx: None }
    }

    fn not_json(position: usize, error: String) -> Self {
        Self {
            kind: "json_invalid",
            loc: vec!["body".into(), position.into()],
            msg: "JSON decode error",
            input: json!({}),
            ctx: Some(json!({ "error": error })),
        }
    }

    fn of_field(kind: &'static str, field: &str, msg: &'static str, input: Value) -> Self {
        Self { kind, loc: vec!["body".into(), field.into()], msg, input, ctx: None }
    }
}

/// Reads a body that came as JSON: a sound one as it is, a broken one repaired and with its raw text.
pub(crate) fn read(body: &[u8]) -> Result<LogRecord, Vec<Problem>> {
    if body.is_empty() {
        let (loc, msg) = (vec!["body".into()], "Field required");
        return Err(vec![Problem { kind: "missing", loc, msg, input: Value::Null, ctx: None }]);
    }
    let error = match serde_json::from_slice::<Value>(body) {
        Ok(value) => {
            if deeper_than(&value, MOST_LEVELS) {
                return Err(vec![too_deep()]);
            }
            return record_of(value);
        }
        Err(error) => error,
    };
    if error.to_string().starts_with("recursion limit") {
        return Err(vec![too_deep()]);
    }
    let raw = String::from_utf8_lossy(body);
    let repaired = repair::repair(&raw).map(Value::Object).filter(|value| !deeper_than(value, MOST_LEVELS));
    let Some(value) = repaired else {
        return Err(vec![Problem::not_json(position_of(body, &error), error.to_string())]);
    };
    let mut record = record_of(value)?;
    record.raw = Some(raw.into_owned());
    Ok(record)
}

/// What FastAPI says to a body that is not marked as JSON: it takes it for a text.
pub(crate) fn unmarked(body: &[u8]) -> Vec<Problem> {
    vec![Problem::not_an_object(String::from_utf8_lossy(body).into())]
}

fn too_deep() -> Problem {
    Problem::not_json(0, format!("nested deeper than {MOST_LEVELS} levels"))
}

fn position_of(body: &[u8], error: &serde_json::Error) -> usize {
    let before: usize =
        body.split(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(|l| l.len() + 1).sum();
    (before + error.column()).saturating_sub(1)
}

fn deeper_than(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(items) => levels == 0 || items.iter().any(|item| deeper_than(item, levels - 1)),
        Value::Object(fields) => levels == 0 || fields.values().any(|field| deeper_than(field, levels - 1)),
        _ => false,
    }
}

fn record_of(value: Value) -> Result<LogRecord, Vec<Problem>> {
    let mut fields = match value {
        Value::Object(fields) => fields,
        other => return Err(vec![Problem::not_an_object(other)]),
    };
    let mut problems = Vec::new();
    for (field, required) in [("service", true), ("level", false), ("message", true)] {
        match fields.get(field) {
            Some(Value::String(_)) => {}
            None if !required => {}
            None => {
                let whole = Value::Object(fields.clone());
                problems.push(Problem::of_field("missing", field, "Field required", whole));
            }
            Some(other) => {
                let msg = "Input should be a valid string";
                problems.push(Problem::of_field("string_type", field, msg, other.clone()));
            }
        }
    }
    let attributes = match fields.remove("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(attributes)) => attributes,
        Some(other) => {
            let msg = "Input should be a valid dictionary";
            problems.push(Problem::of_field("dict_type", "metadata", msg, other));
            Map::new()
        }
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut text = |field: &str| match fields.remove(field) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let service = text("service").unwrap_or_default();
    let level = text("level").unwrap_or_else(|| "INFO".into());
    let message = text("message").unwrap_or_default();
    let mut record = LogRecord::new(service, level, message);
    if let Some(time) = fields.get("timestamp").and_then(time_of) {
        record.time = time;
    }
    // Said at the top or among the metadata; there it stays too, so that what was sent reads back.
    let id = |name: &str| fields.get(name).or_else(|| attributes.get(name)).and_then(id_of);
    record.trace_id = id("trace_id");
    record.span_id = id("span_id");
    record.request_id = id("request_id");
    record.correlation_id = id("correlation_id");
    record.attributes = attributes;
    Ok(record)
}

fn id_of(value: &Value) -> Option<String> {
    const LONGEST: usize = 256;
    match value {
        Value::String(text) if !text.is_empty() && text.len() <= LONGEST => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// A sender's idea of a time: RFC 3339, ISO 8601 without a zone (read as UTC), or a number since 1970 in
/// seconds, milliseconds, microseconds or nanoseconds, told apart by its size.
fn time_of(value: &Value) -> Option<Timestamp> {
    let time = match value {
        Value::String(text) => text.trim().parse::<Timestamp>().ok().or_else(|| {
            let civil: DateTime = text.trim().parse().ok()?;
            Some(civil.to_zoned(TimeZone::UTC).ok()?.timestamp())
        })?,
        Value::Number(number) => {
            let number = number.as_f64()?;
            let seconds = match number.abs() {
                size if size < 1e11 => number,
                size if size < 1e14 => number / 1e3,
                size if size < 1e17 => number / 1e6,
                _ => number / 1e9,
            };
            let microseconds = (seconds * 1e6).round();
            (microseconds.abs() < 9e15).then(|| Timestamp::from_microsecond(microseconds as i64).ok())??
        }
        _ => return None,
    };
    // The store's range; a time outside it is a mistake, and then the arrival counts.
    i64::try_from(time.as_nanosecond()).ok().map(|_| time)
}

/// The severity that a question names: a level word or OpenTelemetry's number.
pub(crate) fn severity_of(text: &str) -> Option<Severity> {
    let number = || text.parse::<u8>().ok().filter(|number| (1..=24).contains(number)).map(Severity::from);
    Severity::from_word(text).or_else(number)
}

/// A time that a question names.
pub(crate) fn time_from(text: &str) -> Option<Timestamp> {
    let number = || text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Value::Number);
    time_of(&number().unwrap_or_else(|| text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        serde_json::to_string(&read(body.as_bytes()).expect_err("refused")).expect("JSON")
    }

    #[test]
    fn the_documented_shape_keeps_its_time_and_its_ids() {
        let body = r#"{"timestamp":"2026-01-01T00:00:00.016764227Z","service":"s","level":"Warning","message":"m",
            "trace_id":"t","metadata":{"request_id":"r","n":1.5}}"#;
        let record = read(body.as_bytes()).expect("sound");
        assert_eq!(record.time.to_string(), "2026-01-01T00:00:00.016764227Z");
        assert_eq!((record.trace_id.as_deref(), record.request_id.as_deref()), (Some("t"), Some("r")));
        assert_eq!((record.severity, record.level.as_str()), (Severity::WARN, "Warning"));
        assert_eq!(Value::Object(record.attributes), json!({"request_id": "r", "n": 1.5}));
        assert_eq!(record.raw, None);
    }

    #[test]
    fn times_are_read_in_every_usual_form() {
        let expected: Timestamp = "2026-01-01T00:00:00.5Z".parse().expect("a time");
        let forms = [
            json!("2026-01-01T00:00:00.500"),
            json!(1_767_225_600.5),
            json!(1_767_225_600_500_u64),
            json!(1_767_225_600_500_000_000_u64),
        ];
        for form in forms {
            assert_eq!(time_of(&form), Some(expected), "{form}");
        }
        for none in [json!("yesterday"), json!(1e40), json!("9999-01-01T00:00:00Z"), json!(null)] {
            assert_eq!(time_of(&none), None, "{none}");
        }
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
    fn bytes_that_are_not_utf8_are_a_repair() {
        let record = read(b"{\"service\":\"x\",\"message\":\"caf\xe9\"}").expect("repaired");
        assert_eq!(record.message, "caf\u{fffd}");
        assert!(record.repaired());
    }
}
