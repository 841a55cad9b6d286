//! The binary form in which a message is stored: a record. A segment's row has many records.
//!
//! A record has flags, content type, id, the fields whose flags are set, and the payload; numbers are LEB128.
//! The subject is not part of the record: it is in a column, or in the segment's dictionary.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;
use uuid::Uuid;

use event_transport::bounds;
use event_transport::delivery::Reason;
use event_transport::message::{Headers, Message, MessageId};
use event_transport::subject::Subject;

const KEY: u8 = 1;
const HEADERS: u8 = 1 << 1;
const EXPIRES: u8 = 1 << 2;
const TEXT_ID: u8 = 1 << 3;
/// The record has its own publication time, earlier than its segment's: the message was delayed.
const PUBLISHED: u8 = 1 << 4;
const DEDUP: u8 = 1 << 5;
const DELIVER_AT: u8 = 1 << 6;

/// Content types that are stored in one byte. Part of the file format: only append.
const TYPES: [&str; 6] = [
    "application/cloudevents+json",
    "application/cloudevents+msgpack",
    "application/json",
    "application/msgpack",
    "application/octet-stream",
    "text/plain",
];

/// The largest size of a segment's records in bytes, unless a single record is larger. A consumer that holds one
/// message of a segment keeps the whole segment in memory, so a segment is not larger than batching requires.
pub(super) const SEGMENT_BYTES: usize = 96 * 1024;
/// The highest number of messages in one segment.
pub(super) const SEGMENT_COUNT: u32 = 512;

/// Appends `message` to `out`. `published` is its publication time if it differs from the time of the segment.
pub(super) fn encode(out: &mut Vec<u8>, message: &Message, published: Option<i64>) {
    out.reserve(message.size() + 64);
    let mut flags = 0;
    for (set, flag) in [
        (message.key.is_some(), KEY),
        (!message.headers.is_empty(), HEADERS),
        (message.expires_at.is_some(), EXPIRES),
        (matches!(message.id, MessageId::Text(_)), TEXT_ID),
        (published.is_some(), PUBLISHED),
        (message.dedup, DEDUP),
        (message.deliver_at.is_some(), DELIVER_AT),
    ] {
        flags |= if set { flag } else { 0 };
    }
    out.push(flags);
    match TYPES.iter().position(|known| *known == message.content_type) {
        Some(index) => out.push(index as u8 + 1),
        None => {
            out.push(0);
            put_text(out, &message.content_type);
        }
    }
    match &message.id {
        MessageId::Uuid(id) => out.extend_from_slice(id.as_bytes()),
        MessageId::Text(text) => put_text(out, text),
    }
    if let Some(key) = &message.key {
        put_text(out, key);
    }
    for time in
        [message.expires_at.map(nanos), published, message.deliver_at.map(nanos)].into_iter().flatten()
    {
        out.extend_from_slice(&time.to_le_bytes());
    }
    if !message.headers.is_empty() {
        put_number(out, message.headers.len() as u64);
        for (name, value) in message.headers.iter() {
            put_text(out, name);
            put_text(out, value);
        }
    }
    put_number(out, message.payload.len() as u64);
    out.extend_from_slice(&message.payload);
}

/// Reads records from stored bytes. Every method returns `None` for bytes that [`encode`] did not write.
#[derive(Debug)]
pub(super) struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes, at: 0 }
    }

    /// Reads the next record, and its publication time if it differs from its segment's time.
    /// The payload shares the bytes without a copy.
    pub(super) fn record(&mut self, subject: Subject) -> Option<(Message, Option<i64>)> {
        let flags = self.take(1)?[0];
        let content_type = match self.take(1)?[0] {
            0 => self.text()?,
            index => SmolStr::new_static(TYPES.get(index as usize - 1)?),
        };
        let id = match flags & TEXT_ID {
            0 => MessageId::Uuid(Uuid::from_slice(self.take(16)?).ok()?),
            _ => MessageId::Text(self.text()?),
        };
        let key = if flags & KEY == 0 { None } else { Some(self.text()?) };
        let expires_at = if flags & EXPIRES == 0 { None } else { Some(timestamp(self.time()?)?) };
        let published = if flags & PUBLISHED == 0 { None } else { Some(self.time()?) };
        let deliver_at = if flags & DELIVER_AT == 0 { None } else { Some(timestamp(self.time()?)?) };
        let mut headers = Headers::new();
        if flags & HEADERS != 0 {
            for _ in 0..self.number()? {
                let (name, value) = (self.text()?, self.text()?);
                headers.restore(name, value);
            }
        }
        let length = usize::try_from(self.number()?).ok()?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len())?;
        let payload = self.bytes.slice(self.at..end);
        self.at = end;
        let message = Message {
            key,
            headers,
            deliver_at,
            expires_at,
            dedup: flags & DEDUP != 0,
            ..Message::with_id(id, subject, content_type, payload)
        };
        Some((message, published))
    }

    /// Reads a number.
    pub(super) fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Skips `length` bytes.
    pub(super) fn skip(&mut self, length: u64) -> Option<()> {
        self.take(usize::try_from(length).ok()?).map(drop)
    }

    /// Removes and returns the remaining bytes.
    pub(super) fn rest(&mut self) -> Bytes {
        self.bytes.split_off(self.at)
    }

    /// Whether all bytes have been read.
    pub(super) fn is_at_end(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(length)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    /// Reads a text.
    pub(super) fn text(&mut self) -> Option<SmolStr> {
        let length = usize::try_from(self.number()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok().map(SmolStr::new)
    }

    fn time(&mut self) -> Option<i64> {
        Some(i64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

/// Appends a number.
pub(super) fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a text.
pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// A time in its stored form: nanoseconds since 1970.
pub(super) fn nanos(time: Timestamp) -> i64 {
    time.as_nanosecond().clamp(i64::MIN.into(), (i64::MAX - 1).into()) as i64
}

/// The present time in its stored form.
pub(super) fn now() -> i64 {
    nanos(Timestamp::now())
}

/// The end of a duration that starts now, in its stored form.
pub(super) fn now_and(duration: Duration) -> i64 {
    now().saturating_add(bounds::signed_nanos(duration))
}

/// Reads a stored time.
pub(super) fn timestamp(nanos: i64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanos.into()).ok()
}

/// Prefix of the error text of dead letters with the reason `UnknownVersion`, which are stored with the reason
/// `unknown-type`. Earlier builds cannot list dead letters with a reason that they do not know, so the stored reason is
/// one that all builds know.
const UNKNOWN_VERSION: &str = "unknown-version: ";

/// The text that is stored for `reason`.
pub(super) fn reason_word(reason: Reason) -> &'static str {
    match reason {
        Reason::UnknownVersion => Reason::UnknownType.as_str(),
        other => other.as_str(),
    }
}

/// The error text that is stored for `reason` and `error`.
pub(super) fn reason_error(reason: Reason, error: &str) -> String {
    if reason == Reason::UnknownVersion { format!("{UNKNOWN_VERSION}{error}") } else { error.to_owned() }
}

/// Reads a reason and an error that [`reason_word`] and [`reason_error`] wrote; an unknown reason, of a later build, is
/// read as `permanent`.
pub(super) fn reason<'e>(word: &str, error: &'e str) -> (Reason, &'e str) {
    let reason = Reason::ALL.into_iter().find(|reason| reason.as_str() == word).unwrap_or(Reason::Permanent);
    match error.strip_prefix(UNKNOWN_VERSION) {
        Some(error) if reason == Reason::UnknownType => (Reason::UnknownVersion, error),
        _ => (reason, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = Message> {
        (
            prop_oneof![Just("application/json".to_owned()), "[a-z/+.;= ]{0,40}"],
            prop_oneof![
                any::<u128>().prop_map(|id| MessageId::Uuid(Uuid::from_u128(id))),
                ".{0,50}".prop_map(MessageId::from)
            ],
            proptest::option::of(".{0,30}"),
            proptest::collection::vec(("[a-z0-9_-]{1,64}", "[^\\p{Cc}]{0,30}"), 0..5),
            proptest::collection::vec(any::<u8>(), 0..300),
            proptest::option::of(0i64..i64::MAX / 2),
            proptest::option::of(0i64..i64::MAX / 2),
            any::<bool>(),
        )
            .prop_map(|(content_type, id, key, pairs, payload, deliver, expires, dedup)| {
                let mut message = Message::new(Subject::new("a.b").unwrap(), content_type, payload);
                message.id = id;
                message.key = key.map(SmolStr::from);
                for (name, value) in pairs {
                    message.headers.set(&name, &value).unwrap();
                }
                message.deliver_at = deliver.and_then(timestamp);
                message.expires_at = expires.and_then(timestamp);
                message.dedup = dedup;
                message
            })
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were(messages in proptest::collection::vec((message(), proptest::option::of(any::<i64>())), 0..8)) {
            let mut bytes = Vec::new();
            for (message, published) in &messages {
                encode(&mut bytes, message, *published);
            }
            let mut reader = Reader::new(bytes.into());
            for (message, published) in messages {
                let subject = message.subject.clone();
                prop_assert_eq!(reader.record(subject), Some((message, published)));
            }
            prop_assert!(reader.is_at_end());
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(bytes.into());
            while reader.record(Subject::new("a").unwrap()).is_some() {}
        }

        #[test]
        fn numbers_come_back(value in any::<u64>()) {
            let mut bytes = Vec::new();
            put_number(&mut bytes, value);
            prop_assert_eq!(Reader::new(bytes.into()).number(), Some(value));
        }
    }
}
