//! Makes a record of the fields of a JSON object; accepts Logthon's field names and those of common loggers.
//!
//! Names are compared case-insensitively and without punctuation, so `trace_id`, `traceId` and `trace.id` are the
//! same. A field that sets a field of the record is not an attribute; every other field is. Logthon's own names take
//! precedence and are refused by Logthon's rules.

use std::borrow::Cow;
use std::collections::HashMap;

use event_client::log::{Attributes, LogRecord, Severity};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::time;

/// Field names of the level: Logthon, pino, winston, zap and slog; Python and Monolog; OpenTelemetry and Google; ECS;
/// short names; numbers of OpenTelemetry and of Python.
const LEVELS: [&str; 9] =
    ["level", "levelname", "severity", "severitytext", "loglevel", "lvl", "l", "severitynumber", "levelno"];
/// Field names of the message: Logthon, log4j2 and ECS; pino, zap and slog; structlog; GELF; OpenTelemetry; Docker
/// and others; Serilog; zap's short names.
const MESSAGES: [&str; 9] = ["message", "msg", "event", "shortmessage", "body", "text", "log", "mt", "m"];
/// Field names of the time: Logthon and ECS (`@timestamp`); pino and slog; zap; Monolog; Python; log4j2; short names;
/// OpenTelemetry; journald.
const TIMES: [&str; 11] = [
    "timestamp",
    "time",
    "ts",
    "datetime",
    "asctime",
    "eventtime",
    "instant",
    "timemillis",
    "t",
    "timeunixnano",
    "realtimetimestamp",
];
const TRACES: [&str; 3] = ["traceid", "oteltraceid", "ddtraceid"];
const SPANS: [&str; 3] = ["spanid", "otelspanid", "ddspanid"];
const REQUESTS: [&str; 3] = ["requestid", "reqid", "httprequestid"];
const CORRELATIONS: [&str; 1] = ["correlationid"];
/// Field names of the program, which many loggers write and Logthon does not use; these fields also stay attributes.
const PROGRAMS: [&str; 5] = ["app", "appname", "application", "applicationname", "name"];
/// The service of a record without one, as OpenTelemetry names it.
const UNKNOWN_SERVICE: &str = "unknown_service";

/// The reason why an object is not a record.
#[derive(Debug)]
pub(super) enum Refusal {
    /// A text is not valid: it contains half of a surrogate pair. Then the repaired record is used, if there is one.
    Unsound,
    /// Logthon's fields are missing or of another type.
    Problems(Vec<Problem>),
}

impl From<serde_json::Error> for Refusal {
    fn from(_: serde_json::Error) -> Self {
        Self::Unsound
    }
}

/// A field of the object that was sent.
struct Field<'a> {
    name: Cow<'a, str>,
    /// The name in lower case and without punctuation.
    key: String,
    json: &'a str,
    /// Whether it set a field of the record.
    taken: bool,
}

/// The fields of an object, in their order.
struct Fields<'a>(Vec<Field<'a>>);

/// Reads a record from a JSON object.
pub(super) fn record_of(json: &str) -> Result<LogRecord, Refusal> {
    let mut fields: Fields<'_> = serde_json::from_str(json)?;
    let mut problems = Vec::new();
    let service = fields.own("service", |json| text_in(json, "name").is_some(), &mut problems)?;
    let level = fields.own("level", is_number, &mut problems)?;
    let message = fields.own("message", |_| false, &mut problems)?;
    let metadata = fields.metadata(&mut problems);
    let inside: Fields<'_> = metadata.map_or_else(|| Ok(Fields(Vec::new())), serde_json::from_str)?;

    // An object with another logger's names does not come from a Logthon client: it need not have Logthon's fields.
    let (time, mut foreign) = fields.time();
    let (level, severity) = match level {
        Some(word) => {
            let known = Severity::from_word(&word);
            let known = known.or_else(|| fields.level().and_then(|(_, _, severity)| severity));
            (word, known)
        }
        None => match fields.level() {
            Some((at, word, severity)) => {
                foreign = true;
                fields.0[at].taken |= !fields.0[at].json.starts_with('{');
                (word, severity)
            }
            None => ("INFO".into(), None),
        },
    };
    let message = message.or_else(|| fields.message().inspect(|_| foreign = true));
    let service = service.or_else(|| fields.service());
    let service = service.or_else(|| foreign.then(|| fields.program()));
    for (name, found) in [("service", service.is_some()), ("message", message.is_some() || foreign)] {
        if !found && !fields.0.iter().any(|field| field.name == name) {
            problems.push(Problem::missing(name, json));
        }
    }
    if !problems.is_empty() {
        return Err(Refusal::Problems(problems));
    }
    let mut record = LogRecord::new(service.unwrap_or_default(), level, message.unwrap_or_default());
    record.severity = severity.unwrap_or_default();
    record.time = time.unwrap_or(record.time);
    // Ids are read from the top level or from the metadata; in the metadata they also stay, so that the stored
    // metadata equals the sent metadata.
    let mut id = |keys: &[&str], nest: &str| {
        fields.id(keys, nest).or_else(|| inside.find_id(keys, nest).map(|found| found.1))
    };
    record.trace_id = id(&TRACES, "trace");
    record.span_id = id(&SPANS, "span");
    record.request_id = id(&REQUESTS, "req");
    record.correlation_id = id(&CORRELATIONS, "correlation");
    record.attributes = attributes(metadata, &inside, fields)?;
    Ok(record)
}

impl<'a> Fields<'a> {
    /// Reads one of Logthon's text fields. A value of another type is a problem, unless other loggers write that
    /// type.
    fn own(
        &mut self,
        name: &str,
        allowed: fn(&str) -> bool,
        problems: &mut Vec<Problem>,
    ) -> Result<Option<String>, Refusal> {
        // If a name occurs twice, the last field counts, as in Python.
        let Some(field) = self.0.iter_mut().rfind(|field| field.name == name) else { return Ok(None) };
        if field.json.starts_with('"') {
            field.taken = true;
            return Ok(Some(serde_json::from_str(field.json)?));
        }
        if !allowed(field.json) {
            problems.push(Problem::not_a_string(name, field.json));
        }
        Ok(None)
    }

    /// Reads Logthon's `metadata`.
    fn metadata(&mut self, problems: &mut Vec<Problem>) -> Option<&'a str> {
        let field = self.0.iter_mut().rfind(|field| field.name == "metadata")?;
        match field.json.as_bytes() {
            b"null" => field.taken = true,
            [b'{', ..] => {
                field.taken = true;
                return Some(field.json);
            }
            _ => problems.push(Problem::not_a_dictionary("metadata", field.json)),
        }
        None
    }

    /// Returns the untaken fields that have one of these names, in the order of the names.
    fn under(&self, keys: &[&str]) -> impl Iterator<Item = (usize, &Field<'a>)> {
        let fields = || self.0.iter().enumerate().filter(|(_, field)| !field.taken);
        keys.iter().flat_map(move |key| fields().filter(move |(_, field)| field.key == **key))
    }

    /// Returns the first readable time, and whether its name is another logger's.
    fn time(&mut self) -> (Option<Timestamp>, bool) {
        let found = self.under(&TIMES).find_map(|(at, field)| Some((at, time::of_json(field.json)?)));
        let Some((at, time)) = found else { return (None, false) };
        self.0[at].taken = true;
        (Some(time), self.0[at].name != "timestamp")
    }

    /// Returns the level: a known word before a known number. The parts are the field's index, the text and the
    /// severity.
    fn level(&self) -> Option<(usize, String, Option<Severity>)> {
        let nested = self.under(&["log"]).filter_map(|(at, field)| {
            let word = text_in(field.json, "level")?;
            let severity = Severity::from_word(&word)?;
            Some((at, word, Some(severity)))
        });
        let words =
            self.under(&LEVELS).filter(|(_, field)| field.json.starts_with('"')).filter_map(|(at, field)| {
                let word: String = serde_json::from_str(field.json).ok()?;
                let severity = Severity::from_word(&word)?;
                Some((at, word, Some(severity)))
            });
        let numbers =
            self.under(&LEVELS).filter(|(_, field)| is_number(field.json)).filter_map(|(at, field)| {
                let severity = numeric(&field.key, field.json);
                // A number under Logthon's name `level` is a level even when its severity is unknown.
                (severity.is_some() || field.name == "level").then(|| (at, field.json.to_owned(), severity))
            });
        words.chain(nested).chain(numbers).next()
    }

    fn message(&mut self) -> Option<String> {
        let (at, text) = self.under(&MESSAGES).find_map(|(at, field)| Some((at, plain(field.json)?)))?;
        self.0[at].taken = true;
        Some(text)
    }

    /// Reads the service by the names of ECS and OpenTelemetry, nested or flat.
    fn service(&mut self) -> Option<String> {
        let (at, text) = self.under(&["service", "servicename"]).find_map(|(at, field)| {
            let text = plain(field.json).or_else(|| text_in(field.json, "name"))?;
            (!text.is_empty()).then_some((at, text))
        })?;
        self.0[at].taken = !self.0[at].json.starts_with('{');
        Some(text)
    }

    /// Returns the service of a record that has no service field: the program's name.
    fn program(&self) -> String {
        let named =
            self.under(&PROGRAMS).filter_map(|(_, field)| plain(field.json)).find(|name| !name.is_empty());
        named.unwrap_or_else(|| UNKNOWN_SERVICE.into())
    }

    fn id(&mut self, keys: &[&str], nest: &str) -> Option<String> {
        let (at, id) = self.find_id(keys, nest)?;
        self.0[at].taken = !self.0[at].json.starts_with('{');
        Some(id)
    }

    fn find_id(&self, keys: &[&str], nest: &str) -> Option<(usize, String)> {
        let flat = self.under(keys).map(|(at, field)| (at, plain(field.json)));
        let nest = [nest];
        let nested = self.under(&nest).map(|(at, field)| (at, text_in(field.json, "id")));
        flat.chain(nested).find_map(|(at, id)| Some((at, id.filter(|id| is_id(id))?)))
    }
}

/// Returns the metadata followed by the untaken fields, in the order in which they were sent. A name that exists
/// already gets a number.
fn attributes(
    metadata: Option<&str>,
    inside: &Fields<'_>,
    fields: Fields<'_>,
) -> Result<Attributes, Refusal> {
    let mut text = metadata.unwrap_or("{}").to_owned();
    // Each name with the number that its next occurrence gets.
    let mut names: HashMap<Cow<'_, str>, usize> =
        inside.0.iter().map(|field| (field.name.clone(), 2)).collect();
    for field in fields.0.into_iter().filter(|field| !field.taken) {
        let mut name = field.name.clone();
        let mut number = names.get(&name).copied().unwrap_or(2);
        while names.contains_key(&name) {
            name = format!("{}_{number}", field.name).into();
            number += 1;
        }
        if number > 2 {
            names.insert(field.name, number);
        }
        text.truncate(text.trim_end().len() - 1);
        if !names.is_empty() {
            text.push(',');
        }
        text.push_str(&serde_json::to_string(&name)?);
        text.push(':');
        text.push_str(field.json);
        text.push('}');
        names.insert(name, 2);
    }
    Attributes::from_json(&text).map_err(|_| Refusal::Unsound)
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Name(name)) = map.next_key()? {
                    let value: &RawValue = map.next_value()?;
                    let signs = name.chars().filter(|sign| sign.is_ascii_alphanumeric());
                    let key = signs.map(|sign| sign.to_ascii_lowercase()).collect();
                    fields.push(Field { name, key, json: value.get(), taken: false });
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

fn is_number(json: &str) -> bool {
    json.starts_with(|first: char| first == '-' || first.is_ascii_digit())
}

/// Returns a string, or a number or boolean as it is written; `None` for objects, lists and null.
fn plain(json: &str) -> Option<String> {
    match json.bytes().next()? {
        b'"' => serde_json::from_str(json).ok(),
        b'{' | b'[' | b'n' => None,
        _ => Some(json.to_owned()),
    }
}

/// Returns a text field of the object, if `json` is an object.
fn text_in(json: &str, key: &str) -> Option<String> {
    let fields: Fields<'_> = json.starts_with('{').then(|| serde_json::from_str(json).ok())??;
    fields.under(&[key]).find_map(|(_, field)| plain(field.json).filter(|text| !text.is_empty()))
}

fn is_id(id: &str) -> bool {
    const LONGEST: usize = 256;
    // OpenTelemetry writes ids of only zeros when there is no trace.
    let none = id.len() >= 16 && id.bytes().all(|sign| sign == b'0');
    !id.is_empty() && id.len() <= LONGEST && !none
}

/// Returns the severity of a number, by the scale of its field name.
fn numeric(key: &str, json: &str) -> Option<Severity> {
    let number: i64 = json.parse().ok()?;
    let opentelemetry =
        || u8::try_from(number).ok().filter(|number| (1..=24).contains(number)).map(Severity::from);
    match key {
        "severitynumber" => opentelemetry(),
        "severity" => Severity::from_level_number(number).or_else(opentelemetry),
        // 10 means debug in Python and trace in pino.
        "levelno" => Severity::from_level_number(number.checked_add(10)?),
        // The name is too short: a number under it is probably not a level.
        "l" => None,
        _ => Severity::from_level_number(number),
    }
}
