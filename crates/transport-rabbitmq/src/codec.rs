//! Converts messages to AMQP properties, headers and body, and back.
//!
//! | AMQP | meaning |
//! |---|---|
//! | property `content_type` | MIME type of the body |
//! | property `message_id` | id of the event |
//! | property `timestamp` | time of the publication, in seconds |
//! | property `delivery_mode` | 2, persistent |
//! | header `bus-published` | time of the publication in milliseconds, a number |
//! | header `cloudEvents_NAME` | an attribute of an event in binary mode, not percent-encoded |
//! | others | as in [`headers`]: the key, the expiry, free headers |
//!
//! The prefix is that of the CloudEvents binding for AMQP; the prefixes `cloudEvents:` and `ce-` of other producers are
//! read as well.

use bytes::Bytes;
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use smol_str::{SmolStr, format_smolstr};

use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::message::{Headers, Message, MessageId};
use event_transport::subject::Subject;

/// Prefix of an attribute's name: in the library's own headers, and over AMQP.
const CE: &str = "ce-";
const CLOUD_EVENTS: &str = "cloudEvents_";
/// Maximum length of a short string in bytes.
const SHORT: usize = 255;
/// Header with the names of a frame's headers, in their order.
const ORDER: &str = "bus-headers";
/// Headers must fit one frame of 128 KiB together with the properties.
const HEADERS: usize = 120 * 1024;

/// Facts that travel beside a message, as headers of a copy.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Facts {
    /// Attempt number of the first delivery of this copy, from 1.
    pub(super) attempt: u32,
    pub(super) published_at: Option<Timestamp>,
    pub(super) first_attempt_at: Option<Timestamp>,
    pub(super) replayed: bool,
    /// The message must not be delivered before this time.
    pub(super) due: Option<Timestamp>,
}

impl Default for Facts {
    fn default() -> Self {
        Self { attempt: 1, published_at: None, first_attempt_at: None, replayed: false, due: None }
    }
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// Properties of a first publication.
pub(super) fn publication(message: &Message, now: Timestamp) -> Result<BasicProperties> {
    let mut table = FieldTable::default();
    table.insert(headers::PUBLISHED.into(), AMQPValue::LongLongInt(now.as_millisecond()));
    encode(message, table)
        .map(|properties| properties.with_timestamp(u64::try_from(now.as_second()).unwrap_or_default()))
}

/// Properties of a copy that is routed by a queue's name.
pub(super) fn copy(message: &Message, facts: &Facts, mut table: FieldTable) -> Result<BasicProperties> {
    let mut number = |name: &str, value: i64| {
        table.insert(name.into(), AMQPValue::LongLongInt(value));
    };
    for (name, at) in [
        (headers::PUBLISHED, facts.published_at),
        (headers::FIRST_ATTEMPT, facts.first_attempt_at),
        (headers::DELIVER_AT, facts.due),
    ] {
        if let Some(at) = at {
            number(name, at.as_millisecond());
        }
    }
    if facts.attempt != 1 {
        number(headers::ATTEMPT, facts.attempt.into());
    }
    if facts.replayed {
        number(headers::REPLAYED, 1);
    }
    table.insert(headers::SUBJECT.into(), text(message.subject.as_str()));
    encode(message, table)
}

fn encode(message: &Message, mut table: FieldTable) -> Result<BasicProperties> {
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    let binary = headers::is_binary(message);
    let named = message.headers.get(headers::ID).is_some();
    let mut bytes = 0;
    headers::write(message, |name, value| {
        bytes += name.len() + value.len() + 8;
        match name {
            headers::CONTENT_TYPE if value.len() <= SHORT => {
                properties = std::mem::take(&mut properties).with_content_type(value.into());
            }
            // The id becomes a property and is not percent-encoded, because AMQP allows any UTF-8 there.
            headers::ID if !named => {}
            _ => match name.strip_prefix(CE) {
                Some(attribute) if binary => {
                    let name = format_smolstr!("{CLOUD_EVENTS}{attribute}");
                    table.insert(name.as_str().into(), text(&headers::foreign(value)));
                }
                _ => drop(table.insert(free_name(name), text(value))),
            },
        }
    });
    let id = id_text(&message.id);
    bytes += id.len();
    if id.len() <= SHORT {
        properties = properties.with_message_id(id.as_str().into());
    } else if !named {
        table.insert(headers::ID.into(), text(&headers::escape(&id).to_string()));
    }
    if bytes > HEADERS {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("the headers take {bytes} bytes, `rabbitmq` takes at most {HEADERS}"),
        ));
    }
    Ok(properties.with_headers(table))
}

pub(super) fn id_text(id: &MessageId) -> SmolStr {
    match id {
        MessageId::Uuid(id) => SmolStr::new(id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
        MessageId::Text(text) => text.clone(),
    }
}

/// Properties of a frame of an answer, with its headers in their order.
pub(super) fn write_frame(
    properties: BasicProperties,
    content_type: &str,
    headers: &Headers,
    mut table: FieldTable,
) -> BasicProperties {
    let mut order = String::new();
    for (name, value) in headers.iter() {
        order.push_str(if order.is_empty() { "" } else { "," });
        order.push_str(name);
        table.insert(free_name(name), text(value));
    }
    if headers.len() > 1 {
        table.insert(ORDER.into(), text(&order));
    }
    if content_type.len() > SHORT {
        table.insert(headers::CONTENT_TYPE.into(), text(content_type));
    }
    let properties = properties.with_headers(table).with_delivery_mode(1);
    match content_type.len() {
        1..=SHORT => properties.with_content_type(content_type.into()),
        _ => properties,
    }
}

/// The content type and headers of a frame.
pub(super) fn read_frame(properties: &BasicProperties) -> (SmolStr, Headers) {
    let fields = Fields(properties.headers().as_ref());
    let mut headers = Headers::new();
    for (name, value) in fields.iter() {
        let held = name.as_str().strip_prefix(headers::HELD);
        if (held.is_some() || !headers::is_reserved(name.as_str()) && !is_brokers(name.as_str()))
            && let Some(value) = plain(value)
        {
            headers.restore(held.unwrap_or(name.as_str()).into(), value);
        }
    }
    if let Some(order) = fields.text(ORDER) {
        headers.sort_by(order.split(','));
    }
    let content_type = match properties.content_type() {
        Some(short) => SmolStr::new(short.as_str()),
        None => fields.text(headers::CONTENT_TYPE).unwrap_or_default(),
    };
    (content_type, headers)
}

/// A decoded delivery.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) message: Message,
    pub(super) facts: Facts,
    /// How often the broker has delivered it to a consumer that did not settle it.
    pub(super) returns: u32,
    /// The message came with an id.
    pub(super) named: bool,
}

/// Decodes a delivery. A foreign message without an id gets a new one: equal bytes need not be the same event, and the
/// broker provides nothing that identifies a message when it is delivered again.
///
/// # Errors
/// [`ErrorKind::InvalidName`] when the routing key is not a valid subject.
pub(super) fn read(routing_key: &str, properties: &BasicProperties, payload: Bytes) -> Result<Incoming> {
    let headers = Fields(properties.headers().as_ref());
    let subject = headers.text(headers::SUBJECT);
    let subject = Subject::new(subject.as_deref().unwrap_or(routing_key))?;
    let mut reader = headers::Reader::default();
    for (name, value) in headers.iter() {
        let name = name.as_str();
        if let Some((attribute, value)) = attribute(name, value) {
            reader.header(&format_smolstr!("{CE}{attribute}"), &value);
        } else if !is_brokers(name)
            && let Some(value) = plain(value)
        {
            reader.header(name, &value);
        }
    }
    if let Some(content_type) = properties.content_type() {
        reader.header(headers::CONTENT_TYPE, content_type.as_str());
    }
    let given = properties.message_id().as_ref().map(|id| id.as_str()).filter(|id| !id.is_empty());
    let given = given.map(MessageId::from);
    let mut named = true;
    let message = reader.finish(subject, payload, || {
        named = given.is_some();
        given.unwrap_or_else(MessageId::now)
    });
    let facts = Facts {
        attempt: headers.number(headers::ATTEMPT).and_then(|n| u32::try_from(n).ok()).unwrap_or(1).max(1),
        published_at: headers.time(headers::PUBLISHED).or_else(|| {
            let seconds = i64::try_from((*properties.timestamp())?).ok()?;
            Timestamp::from_second(seconds).ok()
        }),
        first_attempt_at: headers.time(headers::FIRST_ATTEMPT),
        replayed: headers.number(headers::REPLAYED).is_some(),
        due: headers.time(headers::DELIVER_AT),
    };
    let returns = headers.number("x-delivery-count").and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    Ok(Incoming { message, facts, returns, named })
}

/// Returns the attribute in a header that has a prefix of the AMQP binding, with its value percent-encoded as in the
/// library's other headers.
fn attribute<'a>(name: &'a str, value: &AMQPValue) -> Option<(&'a str, SmolStr)> {
    let name = name.strip_prefix(CLOUD_EVENTS).or_else(|| name.strip_prefix("cloudEvents:"))?;
    let value = attribute_text(name, value)?;
    Some((name, format_smolstr!("{}", headers::escape(&value))))
}

/// An attribute's value as text. Times may be AMQP timestamps, in seconds, or numbers, in milliseconds.
fn attribute_text(name: &str, value: &AMQPValue) -> Option<SmolStr> {
    let at = match value {
        AMQPValue::Timestamp(seconds) => Timestamp::from_second(i64::try_from(*seconds).ok()?).ok()?,
        AMQPValue::LongLongInt(ms) if matches!(name, "time" | "expirytime") => {
            Timestamp::from_millisecond(*ms).ok()?
        }
        _ => return plain(value),
    };
    Some(format_smolstr!("{at}"))
}

/// The name under which a free header travels: a name that the broker uses itself gets a prefix.
fn free_name(name: &str) -> ShortString {
    match is_brokers(name) {
        true => format_smolstr!("{}{name}", headers::HELD).as_str().into(),
        false => name.into(),
    }
}

/// Whether the broker adds a header of this name, or the library reads it as the broker's.
fn is_brokers(name: &str) -> bool {
    name.starts_with("x-death")
        || name.starts_with("x-first-death")
        || name.starts_with("x-last-death")
        || matches!(name, "x-delivery-count" | "x-acquired-count" | "x-opt-rabbitmq-received-time")
}

/// A header's value as text; `None` for tables, arrays and empty values.
fn plain(value: &AMQPValue) -> Option<SmolStr> {
    Some(match value {
        AMQPValue::LongString(text) => SmolStr::new(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ShortString(text) => SmolStr::new(text.as_str()),
        AMQPValue::ByteArray(bytes) => SmolStr::new(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::Boolean(value) => SmolStr::new(value.to_string()),
        AMQPValue::Float(value) => SmolStr::new(value.to_string()),
        AMQPValue::Double(value) => SmolStr::new(value.to_string()),
        AMQPValue::Timestamp(value) => SmolStr::new(value.to_string()),
        other => SmolStr::new(integer(other)?.to_string()),
    })
}

fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

/// Access to headers by name.
pub(super) struct Fields<'a>(pub(super) Option<&'a FieldTable>);

impl<'a> Fields<'a> {
    fn iter(&self) -> impl Iterator<Item = (&'a ShortString, &'a AMQPValue)> {
        self.0.into_iter().flat_map(|table| table.inner())
    }

    fn get(&self, name: &str) -> Option<&'a AMQPValue> {
        self.0?.inner().get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<SmolStr> {
        plain(self.get(name)?)
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        let value = self.get(name)?;
        integer(value).or_else(|| plain(value)?.parse().ok())
    }

    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        Timestamp::from_millisecond(self.number(name)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: &Message, facts: &Facts) -> Incoming {
        let properties = copy(message, facts, FieldTable::default()).unwrap();
        read("elsewhere", &properties, message.payload.clone()).unwrap()
    }

    #[test]
    fn a_copy_comes_back_whole() {
        let mut message = Message::new(Subject::new("a.b").unwrap(), "text/plain", "x");
        message.key = Some("ключ %".into());
        message.headers.set("tenant", "größe").unwrap();
        message.headers.set("other", "").unwrap();
        let at = |n| Timestamp::from_millisecond(n).ok();
        let facts =
            Facts { attempt: 7, published_at: at(1), first_attempt_at: at(2), replayed: true, due: at(3) };
        for id in ["018f3c5e-7b1a-7000-8000-000000000001", "order/17:α %", &"x".repeat(300)] {
            message.id = id.into();
            let back = round_trip(&message, &facts);
            assert_eq!((back.message, back.facts, back.returns), (message.clone(), facts.clone(), 0));
        }
    }

    #[test]
    fn foreign_headers_of_any_type_harm_nothing() {
        let mut table = FieldTable::default();
        table.insert("bytes".into(), AMQPValue::LongString(vec![0xff, b'a'].into()));
        table.insert("Number".into(), AMQPValue::LongInt(-3));
        table.insert("nothing".into(), AMQPValue::Void);
        table.insert("bus-attempt".into(), AMQPValue::LongString("many".into()));
        table.insert("x-delivery-count".into(), AMQPValue::LongInt(2));
        let properties = BasicProperties::default().with_headers(table);
        let read = read("a.b", &properties, Bytes::from_static(b"x")).unwrap();
        assert_eq!(read.message.headers.get("bytes"), Some("\u{fffd}a"));
        assert_eq!(read.message.headers.get("number"), Some("-3"));
        assert_eq!((read.message.headers.len(), read.facts.attempt, read.returns), (2, 1, 2));
        let error = super::read("Not A Subject", &properties, Bytes::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
    }

    #[test]
    fn headers_beyond_a_frame_are_refused() {
        let mut message = Message::new(Subject::new("a.b").unwrap(), "text/plain", "x");
        for n in 0..40 {
            message.headers.set(&format!("h{n}"), &"v".repeat(4000)).unwrap();
        }
        assert_eq!(publication(&message, Timestamp::now()).unwrap_err().kind(), ErrorKind::TooLarge);
    }
}
