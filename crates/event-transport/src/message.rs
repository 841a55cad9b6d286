//! The message type of every transport: a subject, an id, headers and a payload.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::subject::Subject;

/// Identity of a message. This library generates UUIDv7; other producers may send any text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum MessageId {
    /// A UUID, stored in 16 bytes.
    Uuid(Uuid),
    /// Any other text.
    Text(SmolStr),
}

impl MessageId {
    /// A fresh UUIDv7.
    #[inline]
    pub fn now() -> Self {
        Self::Uuid(Uuid::now_v7())
    }
}

impl From<Uuid> for MessageId {
    #[inline]
    fn from(id: Uuid) -> Self {
        Self::Uuid(id)
    }
}

impl From<&str> for MessageId {
    fn from(text: &str) -> Self {
        match Uuid::try_parse(text) {
            // Only the canonical lower-case form is stored as a UUID: any other form would be printed differently
            // from the text that was received.
            Ok(id) if text.len() == 36 && !text.bytes().any(|b| b.is_ascii_uppercase()) => Self::Uuid(id),
            _ => Self::Text(text.into()),
        }
    }
}

impl From<String> for MessageId {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => id.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for MessageId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Uuid(id) => {
                serializer.serialize_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> serde::Deserialize<'de> for MessageId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = MessageId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message id")
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<MessageId, E> {
                Ok(text.into())
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

/// Position of a message in its transport's log. Positions are comparable within one topic of one transport.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u128);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.0)
    }
}

impl FromStr for Position {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        text.parse()
            .map(Self)
            .map_err(|_| Error::new(ErrorKind::Config, "a position is a number").with("position", text))
    }
}

/// The header that has the MIME type of the body.
pub const CONTENT_TYPE: &str = "content-type";

/// Whether the library or a broker reserves `name`, so that it cannot be a free header.
pub fn is_reserved(name: &str) -> bool {
    name == CONTENT_TYPE || ["bus-", "nats-", "x-death"].iter().any(|prefix| name.starts_with(prefix))
}

/// Free headers (those that the application sets), in the order in which they were added. Names are lower case.
/// Lookup is linear, because a message rarely has more than a few headers.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(SmolStr, SmolStr)>);

impl Headers {
    /// No headers.
    #[inline]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns the value of `name`; the case of `name` does not matter.
    #[inline]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Sets `name` to `value`, replacing an earlier value.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] unless the name is 1 to 64 characters of `[a-zA-Z0-9_-]` and the value is
    /// at most 4 KiB without control characters, and for a reserved name: `content-type`, `bus-…`, `nats-…`, `x-death…`.
    /// Names that start with `ce-` are the CloudEvents attributes of an event in binary mode: `publish` refuses a
    /// message that has such a header and no `ce-type`.
    pub fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let named = (1..=64).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if !named || value.len() > 4096 || value.chars().any(char::is_control) {
            return Err(Error::new(
                ErrorKind::InvalidName,
                "a header name has 1 to 64 characters of a-z 0-9 _ -, a value at most 4096 bytes without control characters",
            )
            .with("header", format!("{:?}", &name[..name.floor_char_boundary(80)])));
        }
        let name = SmolStr::new(name.to_ascii_lowercase());
        if is_reserved(&name) {
            return Err(Error::new(
                ErrorKind::InvalidName,
                "`content-type` and names that start with `bus-`, `nats-` or `x-death` are reserved; choose another name",
            )
            .with("header", name));
        }
        match self.0.iter_mut().find(|(have, _)| *have == name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name, value.into())),
        }
        Ok(())
    }

    /// Adds free headers to the headers that an envelope has written.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidName`] for names that start with `ce-`: only the envelope writes those.
    pub fn add_free(&mut self, free: &Self) -> Result<()> {
        for (name, value) in free.iter() {
            if name.starts_with("ce-") {
                return Err(Error::new(
                    ErrorKind::InvalidName,
                    "names that start with `ce-` are attributes of the event; choose another name",
                )
                .with("header", name));
            }
            self.set(name, value)?;
        }
        Ok(())
    }

    /// Adds a stored header without checking it: `set` checked it before it was stored.
    #[inline]
    pub fn restore(&mut self, name: SmolStr, value: SmolStr) {
        self.0.push((name, value));
    }

    /// Sorts headers into the order of `names`; headers that are not in `names` follow in their present order.
    pub fn sort_by<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        let mut sorted = Vec::with_capacity(self.0.len());
        for name in names {
            if let Some(at) = self.0.iter().position(|(have, _)| have == name) {
                sorted.push(self.0.remove(at));
            }
        }
        sorted.append(&mut self.0);
        self.0 = sorted;
    }

    /// All headers in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Whether there are no headers.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of headers.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `{:?}` must not write the value of an `authorization` or token header into a log.
        f.debug_map()
            .entries(self.iter().map(|(name, value)| {
                (name, if name.contains("auth") || name.contains("token") { "***" } else { value })
            }))
            .finish()
    }
}

/// Which failures a published message survives once `publish` has returned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Durability {
    /// The default class of the bus; see [`Capabilities::durability`](crate::Capabilities::durability).
    #[default]
    Default,
    /// Survives a crash of the process, but not a crash of the machine.
    PageCache,
    /// Survives loss of power: it is written to disk with fsync.
    Fsync,
}

/// One message, as an application publishes it and a transport delivers it.
#[derive(Clone, PartialEq)]
pub struct Message {
    /// The subject it is published to: `orders.placed.v1`.
    pub subject: Subject,
    /// Its identity; repeated publishes and retries keep it.
    pub id: MessageId,
    /// Messages of one topic with the same key stay in order for keyed consumers.
    pub key: Option<SmolStr>,
    /// MIME type of `payload`, such as `application/cloudevents+json`.
    pub content_type: SmolStr,
    /// Free headers; in binary mode also the attributes of the envelope.
    pub headers: Headers,
    /// The body.
    pub payload: Bytes,
    /// The transport does not deliver it before this time.
    pub deliver_at: Option<Timestamp>,
    /// The transport does not deliver it after this time; it skips and counts an expired message.
    pub expires_at: Option<Timestamp>,
    /// The transport must store only one message per id within its dedup window.
    pub dedup: bool,
    /// The durability that it must have before `publish` returns.
    pub durability: Durability,
}

impl Message {
    /// A message with a fresh id and no options.
    pub fn new(subject: Subject, content_type: impl Into<SmolStr>, payload: impl Into<Bytes>) -> Self {
        Self::with_id(MessageId::now(), subject, content_type.into(), payload.into())
    }

    /// A message with a given id and no options, as a transport builds it from stored data.
    #[inline]
    pub fn with_id(id: MessageId, subject: Subject, content_type: SmolStr, payload: Bytes) -> Self {
        Self {
            subject,
            id,
            key: None,
            content_type,
            headers: Headers::new(),
            payload,
            deliver_at: None,
            expires_at: None,
            dedup: false,
            durability: Durability::Default,
        }
    }

    /// The number of bytes it takes in a transport's buffer: payload, subject, content type, key and headers.
    #[inline]
    pub fn size(&self) -> usize {
        self.payload.len()
            + self.subject.as_str().len()
            + self.content_type.len()
            + self.key.as_ref().map_or(0, |key| key.len())
            + self.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The payload is user data and must not get into a log: only its size is written.
        f.debug_struct("Message")
            .field("subject", &self.subject)
            .field("id", &self.id)
            .field("key", &self.key)
            .field("content_type", &self.content_type)
            .field("headers", &self.headers)
            .field("payload_bytes", &self.payload.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_as_they_were_sent() {
        for text in
            ["018f3c5e-7b1a-7000-8000-000000000001", "018F3C5E-7B1A-7000-8000-000000000001", "A-1", ""]
        {
            assert_eq!(MessageId::from(text).to_string(), text);
        }
    }

    #[test]
    fn header_names_fold_case_and_secrets_stay_hidden() {
        let mut headers = Headers::new();
        headers.set("Tenant", "a").unwrap();
        headers.set("tenant", "b").unwrap();
        headers.set("authorization", "Bearer x").unwrap();
        assert_eq!((headers.get("TENANT"), headers.len()), (Some("b"), 2));
        assert!(!format!("{headers:?}").contains("Bearer"));
        assert!(headers.set("bad name", "x").is_err());
        assert!(headers.set("Bus-Attempt", "1").is_err());
        assert!(headers.set("ok", "line\nbreak").is_err());
    }
}
