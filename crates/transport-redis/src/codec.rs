//! Converts messages to the fields of a stream entry and back; parses entry ids.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use jiff::Timestamp;
use redis::{Cmd, RedisWrite, ToRedisArgs, Value};
use smol_str::format_smolstr;

use event_transport::error::{Error, ErrorKind};
use event_transport::headers::{self, Reader};
use event_transport::message::{Message, MessageId, Position};
use event_transport::subject::Subject;

/// Field with the body.
pub(super) const DATA: &str = "data";
/// Field of a copy: the id of the entry that it was copied from.
pub(super) const ORIGIN: &str = "bus-origin";

/// The id of a stream entry: Unix milliseconds and a sequence number within them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryId {
    pub(super) ms: u64,
    pub(super) seq: u64,
}

impl EntryId {
    pub(super) fn position(self) -> Position {
        Position((u128::from(self.ms) << 64) | u128::from(self.seq))
    }

    pub(super) fn from_position(position: Position) -> Self {
        Self { ms: (position.0 >> 64) as u64, seq: position.0 as u64 }
    }

    /// The id just before this one.
    pub(super) fn before(self) -> Self {
        match (self.ms, self.seq) {
            (0, 0) => self,
            (ms, 0) => Self { ms: ms - 1, seq: u64::MAX },
            (ms, seq) => Self { ms, seq: seq - 1 },
        }
    }

    pub(super) fn time(self) -> Option<Timestamp> {
        Timestamp::from_millisecond(i64::try_from(self.ms).ok()?).ok()
    }
}

impl EntryId {
    /// Parses `MS-SEQ`, or `MS` alone.
    pub(super) fn read(text: &[u8]) -> Option<Self> {
        let number = |digits: &[u8]| {
            let digit = |sum: Option<u64>, byte: &u8| {
                let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
                sum?.checked_mul(10)?.checked_add(digit)
            };
            digits.iter().fold((!digits.is_empty()).then_some(0), digit)
        };
        match text.iter().position(|byte| *byte == b'-') {
            Some(at) => Some(Self { ms: number(&text[..at])?, seq: number(&text[at + 1..])? }),
            None => Some(Self { ms: number(text)?, seq: 0 }),
        }
    }

    /// Writes `MS-SEQ` at the end of `space`; returns the offset of its first byte.
    fn write(self, space: &mut [u8; 41]) -> usize {
        let mut at = space.len();
        for mut number in [self.seq, self.ms] {
            if at < space.len() {
                at -= 1;
                space[at] = b'-';
            }
            loop {
                at -= 1;
                space[at] = b'0' + (number % 10) as u8;
                number /= 10;
                if number == 0 {
                    break;
                }
            }
        }
        at
    }
}

/// Every received and every acknowledged entry has its id in a command, so the id is written without an intermediate
/// string.
impl ToRedisArgs for EntryId {
    fn write_redis_args<W: RedisWrite + ?Sized>(&self, out: &mut W) {
        let mut space = [0; 41];
        let at = self.write(&mut space);
        out.write_arg(&space[at..]);
    }
}

impl redis::ToSingleRedisArg for EntryId {}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

impl FromStr for EntryId {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::read(text.as_bytes())
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "not the id of a stream entry"))
    }
}

/// Appends the arguments one after another.
pub(super) fn args<A: ToRedisArgs>(command: &mut Cmd, all: impl IntoIterator<Item = A>) {
    for argument in all {
        command.arg(argument);
    }
}

/// Appends the fields of `message` to a command.
pub(super) fn write(message: &Message, command: &mut Cmd) {
    command.arg(headers::SUBJECT).arg(message.subject.as_str());
    headers::write(message, |name, value| {
        match name {
            DATA => command.arg(format_smolstr!("{}{DATA}", headers::HELD).as_str()),
            name => command.arg(name),
        };
        command.arg(value);
    });
    command.arg(DATA).arg(&message.payload[..]);
}

/// The content of a stream entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: EntryId,
    pub(super) message: Message,
    /// The id under which the message was first published; for a copy it differs from `id`.
    pub(super) origin: EntryId,
    pub(super) replayed: bool,
    /// Its subject is invalid; the message has the topic as its subject instead.
    pub(super) ill_named: bool,
    /// The library's fields that are not part of a message, for dead letters.
    pub(super) extra: Vec<(String, String)>,
}

impl Entry {
    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        !self.replayed && self.message.expires_at.is_some_and(|at| at <= now)
    }
}

/// Parses `[id, [name, value, …]]`; `None` for a deleted entry.
pub(super) fn read(value: Value, topic: &str) -> Option<Entry> {
    let Value::Array(parts) = value else { return None };
    let mut parts = parts.into_iter();
    let Value::BulkString(id) = parts.next()? else { return None };
    let id = EntryId::read(&id)?;
    let Value::Array(fields) = parts.next()? else { return None };
    Some(read_fields(id, fields, topic))
}

/// Parses the fields of the entry `id` of `topic`.
pub(super) fn read_fields(id: EntryId, fields: Vec<Value>, topic: &str) -> Entry {
    let mut reader = Reader::default();
    let mut data = Bytes::new();
    let mut subject = None;
    let mut ill_named = false;
    let mut origin = id;
    let mut replayed = false;
    let mut extra = Vec::new();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let Value::BulkString(name) = name else { continue };
        let Value::BulkString(value) = value else { continue };
        if name == DATA.as_bytes() {
            data = Bytes::from(value);
            continue;
        }
        // A foreign producer may write arbitrary bytes.
        let name = String::from_utf8_lossy(&name);
        let value = String::from_utf8_lossy(&value);
        match &*name {
            headers::SUBJECT => {
                let valid = Subject::new(&*value).ok().filter(|subject| subject.topic() == topic);
                ill_named = valid.is_none();
                subject = valid;
            }
            ORIGIN => origin = value.parse().unwrap_or(id),
            headers::REPLAYED => replayed = true,
            name if name.starts_with("bus-dlq-") || name == headers::FIRST_ATTEMPT => {
                extra.push((name.to_owned(), value.into_owned()));
            }
            name => reader.header(name, &value),
        }
    }
    let subject = subject.unwrap_or_else(|| {
        Subject::new(topic).unwrap_or_else(|_| Subject::new("unknown").expect("a valid subject"))
    });
    let message = reader.finish(subject, data, || MessageId::Text(format_smolstr!("{topic}/{origin}")));
    Entry { id, message, origin, replayed, ill_named, extra }
}

/// The text of a reply, for every kind of string.
pub(super) fn text(value: &Value) -> &str {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
        Value::SimpleString(text) => text,
        _ => "",
    }
}

/// The number in a reply, also if it came as text.
pub(super) fn number(value: &Value) -> i64 {
    match value {
        Value::Int(number) => *number,
        other => text(other).parse().unwrap_or_default(),
    }
}

/// The parts of a reply; empty if it is nil.
pub(super) fn parts(value: Value) -> Vec<Value> {
    match value {
        Value::Array(parts) => parts,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_positions() {
        let id: EntryId = "17-3".parse().unwrap();
        assert_eq!(EntryId::from_position(id.position()), id);
        assert_eq!(id.to_string(), "17-3");
        assert_eq!(id.before(), EntryId { ms: 17, seq: 2 });
        assert_eq!(EntryId { ms: 17, seq: 0 }.before(), EntryId { ms: 16, seq: u64::MAX });
        assert_eq!(EntryId::default().before(), EntryId::default());
        for text in ["x-1", "", "-", "1-", "-1", "1-2-3", "18446744073709551616-0"] {
            assert!(text.parse::<EntryId>().is_err(), "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn ids_are_written_as_they_are_shown(ms: u64, seq: u64) {
            let id = EntryId { ms, seq };
            proptest::prop_assert_eq!(id.to_redis_args(), [id.to_string().into_bytes()]);
            proptest::prop_assert_eq!(EntryId::read(id.to_string().as_bytes()), Some(id));
        }
    }

    #[test]
    fn a_foreign_entry_needs_no_field() {
        let bulk = |text: &[u8]| Value::BulkString(text.to_vec());
        let id = EntryId { ms: 1, seq: 2 };
        let entry = read_fields(id, vec![bulk(b"temperature"), bulk(b"2\xff")], "lab");
        assert_eq!(entry.message.subject.as_str(), "lab");
        assert_eq!(entry.message.id.to_string(), "lab/1-2");
        assert_eq!(entry.message.headers.get("temperature"), Some("2\u{fffd}"));
        assert!(!entry.ill_named);
        let entry = read_fields(id, vec![bulk(b"bus-subject"), bulk(b"Lab x")], "lab");
        assert!(entry.ill_named);
    }
}
