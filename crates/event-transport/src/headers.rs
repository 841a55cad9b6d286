//! Conversion between a message and a broker's headers and body, with the header names that all brokers share.
//!
//! | header | meaning |
//! |---|---|
//! | `content-type` | MIME type of the body; `application/cloudevents+json` is a whole event |
//! | `ce-id` | id of the event |
//! | `ce-partitionkey` | ordering key |
//! | `ce-expirytime` | not delivered after this time, RFC 3339 |
//! | `bus-headers` | names of the free headers in their order, when there are several |
//! | `bus-header-NAME` | the free header `NAME`, if the broker or this layout already uses that name |
//! | `bus-…` | reserved for the library, see the constants |
//!
//! Every other header is a free header with its own name. Values of `ce-` headers are percent-encoded as the
//! CloudEvents bindings for NATS and HTTP require. A message from another producer needs none of them: without `ce-id`
//! its id is derived from its position in the log. Source: CloudEvents NATS binding 1.0.2, section 3.1.3.2.

use bytes::Bytes;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use smol_str::{SmolStr, format_smolstr};

use crate::cloudevents::{self, is_structured, unquote};
use crate::error::{Error, ErrorKind, Result};
pub use crate::message::{CONTENT_TYPE, is_reserved};
use crate::message::{Headers, Message, MessageId};
use crate::rfc3339;
use crate::subject::Subject;

/// The id of the event.
pub const ID: &str = "ce-id";
/// The ordering key, percent-encoded.
pub const KEY: &str = "ce-partitionkey";
/// The time, RFC 3339, after which the message is not delivered.
pub const EXPIRES: &str = "ce-expirytime";
const ORDER: &str = "bus-headers";
/// Prefix for the name of a free header that the broker or this layout already uses.
pub const HELD: &str = "bus-header-";
/// Earliest delivery time in Unix milliseconds.
pub const DELIVER_AT: &str = "bus-deliver-at";
/// The message's own subject, where the broker routes the message by another subject.
pub const SUBJECT: &str = "bus-subject";
/// On a copy: the attempt number, from 1.
pub const ATTEMPT: &str = "bus-attempt";
/// On a copy: Unix milliseconds of the first publication.
pub const PUBLISHED: &str = "bus-published";
/// On a copy: Unix milliseconds of the group's first attempt.
pub const FIRST_ATTEMPT: &str = "bus-first-attempt";
/// Set on a copy that was replayed from the dead letters.
pub const REPLAYED: &str = "bus-replayed";
/// On a dead letter: the group that rejected the message.
pub const DLQ_GROUP: &str = "bus-dlq-group";
/// On a dead letter: the class of failure.
pub const DLQ_REASON: &str = "bus-dlq-reason";
/// On a dead letter: the text of the last error, percent-encoded.
pub const DLQ_ERROR: &str = "bus-dlq-error";
/// On a dead letter: the number of deliveries.
pub const DLQ_ATTEMPTS: &str = "bus-dlq-attempts";
/// On a dead letter: Unix milliseconds of its creation.
pub const DLQ_TIME: &str = "bus-dlq-time";
/// On a request: Unix milliseconds after which the caller no longer waits for the reply.
pub const DEADLINE: &str = "bus-deadline";
/// On a request: the address for the frames of the reply.
pub const REPLY_TO: &str = "bus-reply-to";
/// On a frame of a reply: `more` or `last`.
pub const FRAME: &str = "bus-frame";

/// The ASCII characters that the CloudEvents bindings escape in a value. They also escape every non-ASCII character.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// Percent-encodes a value for a header.
pub fn escape(value: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(value, ESCAPED)
}

/// Reverses [`escape`]; bytes that are not UTF-8 become replacement characters.
pub fn unescape(value: &str) -> SmolStr {
    if value.contains('%') { percent_decode_str(value).decode_utf8_lossy().into() } else { value.into() }
}

/// Decodes an attribute's value as other producers may write it: percent-encoded, quoted, or both.
pub fn foreign(value: &str) -> SmolStr {
    unescape(&unquote(value))
}

/// A time as a header value: Unix milliseconds.
#[inline]
pub fn millis(at: Timestamp) -> SmolStr {
    format_smolstr!("{}", at.as_millisecond())
}

/// Reads the header value that [`millis`] writes; a number outside of the calendar becomes its nearest end.
pub fn time(value: &str) -> Option<Timestamp> {
    let milliseconds: i64 = value.parse().ok()?;
    let nearest = if milliseconds < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Some(Timestamp::from_millisecond(milliseconds).unwrap_or(nearest))
}

/// Whether the message is an event in binary mode, whose attributes are headers.
#[inline]
pub fn is_binary(message: &Message) -> bool {
    message.headers.get("ce-type").is_some()
}

/// Refuses a message that no transport could deliver unchanged: one with an empty id, with a content type that is not a
/// valid header value, or with `ce-` headers although it is not an event in binary mode.
pub fn check(message: &Message) -> Result<()> {
    if matches!(&message.id, MessageId::Text(text) if text.is_empty()) {
        return Err(Error::new(ErrorKind::InvalidName, "a message needs an id"));
    }
    let content_type = message.content_type.as_str();
    if content_type.len() > 4096 || content_type.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err(Error::new(
            ErrorKind::InvalidName,
            "a content type has at most 4096 bytes without control characters",
        ));
    }
    let Some((name, _)) = message.headers.iter().find(|(name, _)| name.starts_with("ce-")) else {
        return Ok(());
    };
    if is_binary(message) && message.headers.get(ID).is_some() && !is_structured(content_type) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::InvalidName,
        "names that start with `ce-` are attributes of an event in binary mode, which has `ce-id` and `ce-type`; choose another name",
    )
    .with("header", name))
}

/// Calls `put` with every header of `message`, the content type first. The headers do not include subject, payload and
/// publish options (`deliver_at`, `dedup`, `durability`).
pub fn write(message: &Message, mut put: impl FnMut(&str, &str)) {
    // In binary mode the envelope has already written its attributes into the free headers.
    let binary = is_binary(message);
    if !message.content_type.is_empty() {
        put(CONTENT_TYPE, &message.content_type);
    }
    if !binary {
        match &message.id {
            MessageId::Uuid(id) => put(ID, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer())),
            // A frame of a reply has no id.
            MessageId::Text(text) if text.is_empty() => {}
            MessageId::Text(text) => put(ID, &escape(text).to_string()),
        }
    }
    if let Some(key) = &message.key
        && message.headers.get(KEY).is_none()
    {
        put(KEY, &escape(key).to_string());
    }
    if let Some(at) = message.expires_at
        && message.headers.get(EXPIRES).is_none()
    {
        put(EXPIRES, &format_smolstr!("{at}"));
    }
    let mut order = String::new();
    for (name, value) in message.headers.iter() {
        if binary || !matches!(name, ID | KEY | EXPIRES) {
            put(name, value);
            if message.headers.len() > 1 {
                order.push_str(if order.is_empty() { "" } else { "," });
                order.push_str(name);
            }
        }
    }
    if !order.is_empty() {
        put(ORDER, &order);
    }
}

/// A content type; the common ones need no allocation.
fn media_type(value: &str) -> SmolStr {
    let known = [cloudevents::STRUCTURED_JSON, cloudevents::STRUCTURED_MSGPACK];
    known
        .iter()
        .find(|known| **known == value)
        .map_or_else(|| value.into(), |known| SmolStr::new_static(known))
}

/// Collects the headers of a received message, in any order, and builds the message from them.
#[derive(Debug, Default)]
pub struct Reader {
    content_type: SmolStr,
    id: Option<MessageId>,
    /// The id in its received form, if it is not a UUID.
    id_text: Option<SmolStr>,
    key: Option<SmolStr>,
    expires: Option<SmolStr>,
    order: Option<SmolStr>,
    binary: bool,
    free: Headers,
}

impl Reader {
    /// Adds a header. Headers of the library that are not part of a message are ignored.
    pub fn header(&mut self, name: &str, value: &str) {
        let lower;
        let name = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = name.to_ascii_lowercase();
            lower.as_str()
        } else {
            name
        };
        match name {
            CONTENT_TYPE => self.content_type = media_type(value),
            ORDER => self.order = Some(value.into()),
            // An id is nearly always a UUID, which needs no allocation.
            ID => match MessageId::from(value) {
                id @ MessageId::Uuid(_) => self.id = Some(id),
                MessageId::Text(text) => {
                    self.id =
                        Some(foreign(&text).as_str().into()).filter(|id| *id != MessageId::Text("".into()));
                    self.id_text = Some(text);
                }
            },
            KEY => self.key = Some(value.into()),
            EXPIRES => self.expires = Some(value.into()),
            _ => match name.strip_prefix(HELD) {
                Some(held) => self.free.restore(held.into(), value.into()),
                None if is_reserved(name) => {}
                None => {
                    self.binary |= name.starts_with("ce-");
                    self.free.restore(name.into(), value.into());
                }
            },
        }
    }

    /// Builds the message; `id` provides the id of a message that has none.
    pub fn finish(self, subject: Subject, payload: Bytes, id: impl FnOnce() -> MessageId) -> Message {
        let mut free = self.free;
        if self.binary {
            // The envelope reads its attributes from the headers.
            let id = self.id_text.or_else(|| self.id.as_ref().map(|id| format_smolstr!("{id}")));
            for (name, value) in [(ID, &id), (KEY, &self.key), (EXPIRES, &self.expires)] {
                if let Some(value) = value {
                    free.restore(name.into(), value.clone());
                }
            }
        }
        if let Some(order) = &self.order {
            free.sort_by(order.split(','));
        }
        let id = self.id.unwrap_or_else(id);
        let mut message = Message::with_id(id, subject, self.content_type, payload);
        message.key = self.key.map(|key| foreign(&key));
        message.expires_at = self.expires.and_then(|at| {
            let at = foreign(&at);
            rfc3339::read(&at).or_else(|| at.parse().ok())
        });
        message.headers = free;
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(message: &Message) -> Message {
        let mut headers = Vec::new();
        write(message, |name, value| headers.push((name.to_owned(), value.to_owned())));
        headers.sort(); // as brokers with maps do
        let mut reader = Reader::default();
        headers.iter().for_each(|(name, value)| reader.header(name, value));
        reader.finish(message.subject.clone(), message.payload.clone(), || unreachable!("it has an id"))
    }

    fn message() -> Message {
        let mut message = Message::new(Subject::new("orders.placed.v1").unwrap(), "application/json", "{}");
        message.key = Some("ä b%\n".into());
        message.expires_at = Some(Timestamp::from_millisecond(1_700_000_000_123).unwrap());
        message
    }

    #[test]
    fn a_message_comes_back_whole() {
        let mut message = message();
        assert_eq!(round_trip(&message), message);
        message.id = "A 1%".into();
        for name in ["zeta", "alpha", "mid"] {
            message.headers.set(name, "ü").unwrap();
        }
        assert_eq!(round_trip(&message), message);
    }

    #[test]
    fn binary_mode_keeps_its_attributes_among_the_headers() {
        let mut message = message();
        message.key = Some("k".into());
        message.expires_at = None;
        for (name, value) in [("ce-type", "orders.placed.v1"), ("ce-id", "a"), ("ce-partitionkey", "k")] {
            message.headers.set(name, value).unwrap();
        }
        message.id = "a".into();
        assert_eq!(round_trip(&message), message);
    }

    #[test]
    fn what_comes_from_elsewhere_needs_no_header() {
        let message =
            Reader::default().finish(Subject::new("a.b").unwrap(), Bytes::from_static(b"x"), || "7".into());
        assert_eq!((message.id, message.key, message.headers.len()), ("7".into(), None, 0));
    }
}
