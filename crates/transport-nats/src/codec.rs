//! Converts messages to NATS messages and back: headers, subjects, and the reply subject and answers of a delivery.

use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;

use super::names::Names;
use event_transport::bounds;
use event_transport::headers::{self, Reader};
use event_transport::message::{Message, MessageId};
use event_transport::subject::Subject;

/// Header with the names of user headers whose values are percent-encoded, because NATS trims white space around
/// values.
const ESCAPED: &str = "bus-escaped";
/// Header with the position of a copy's original in its topic.
pub(super) const POSITION: &str = "bus-position";
/// Header with the dedup id of a message.
pub(super) const DEDUP_ID: &str = "Nats-Msg-Id";

/// Payloads that settle or renew a delivery.
pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");
pub(super) const PROGRESS: Bytes = Bytes::from_static(b"+WPI");
pub(super) const TERM: Bytes = Bytes::from_static(b"+TERM");
const NAK: Bytes = Bytes::from_static(b"-NAK");

/// Returns the payload that gives a message back for at least `after`.
pub(super) fn nak(after: Duration) -> Bytes {
    if after.is_zero() {
        return NAK;
    }
    format!("-NAK {{\"delay\": {}}}", bounds::signed_nanos(after)).into()
}

/// Returns the headers of `message`.
pub(super) fn headers(message: &Message) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut escaped = String::new();
    headers::write(message, |name, value| {
        if value.trim().len() == value.len() {
            put(&mut headers, name, value);
        } else {
            put(&mut headers, name, &headers::escape(value).to_string());
            escaped.push_str(if escaped.is_empty() { "" } else { "," });
            escaped.push_str(name);
        }
    });
    if !escaped.is_empty() {
        put(&mut headers, ESCAPED, &escaped);
    }
    headers
}

/// Sets a header whose name and value have been checked.
pub(super) fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    // Values that cannot be sent were refused before. Losing the header is better than a panic.
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
    }
}

/// Returns the number of bytes that `headers` take on the wire.
pub(super) fn wire_len(headers: &HeaderMap) -> usize {
    let line = |name: &str, value: &HeaderValue| name.len() + value.as_str().len() + 4;
    14 + headers
        .iter()
        .map(|(name, values)| values.iter().map(|value| line(name.as_ref(), value)).sum::<usize>())
        .sum::<usize>()
}

pub(super) fn get<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(HeaderValue::as_str)
}

/// Returns the event subject of a message in a topic's stream. Other publishers may use subjects that are not valid
/// here.
pub(super) fn subject(names: &Names, name: &str) -> Option<Subject> {
    Subject::new(names.event_subject(name)?).ok()
}

/// Builds the message that arrived under `subject`. `id` makes an id for a message without one.
pub(super) fn message(
    headers: Option<&HeaderMap>,
    payload: Bytes,
    subject: Subject,
    id: impl FnOnce() -> MessageId,
) -> Message {
    let mut reader = Reader::default();
    if let Some(headers) = headers {
        let escaped = get(headers, ESCAPED);
        for (name, values) in headers.iter() {
            let (name, Some(value)) = (name.as_ref(), values.first()) else { continue };
            match escaped {
                Some(escaped) if escaped.split(',').any(|other| other == name) => {
                    reader.header(name, &headers::unescape(value.as_str()));
                }
                _ => reader.header(name, value.as_str()),
            }
        }
    }
    reader.finish(subject, payload, id)
}

/// The fields in the reply subject of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AckInfo<'a> {
    pub(super) stream: &'a str,
    pub(super) consumer: &'a str,
    /// Delivery count, from 1.
    pub(super) delivered: u64,
    /// Stream sequence.
    pub(super) sequence: u64,
    /// Consumer sequence, from 1. A gap means that a message was lost in transit.
    pub(super) turn: u64,
    /// Publication time in Unix nanoseconds.
    pub(super) time: i64,
}

impl<'a> AckInfo<'a> {
    /// Reads `$JS.ACK.<stream>.<consumer>.…`, or the longer form with a domain and an account in front (ADR-15).
    pub(super) fn read(reply: &'a str) -> Option<Self> {
        let rest = reply.strip_prefix("$JS.ACK.")?;
        // The old form has 7 more tokens. The new form has 9, or 10 with a random one at the end, or more in later
        // versions.
        let mut tokens = rest.split('.');
        if rest.bytes().filter(|b| *b == b'.').count() >= 8 {
            tokens.next();
            tokens.next();
        }
        let (stream, consumer) = (tokens.next()?, tokens.next()?);
        let (delivered, sequence) = (tokens.next()?.parse().ok()?, tokens.next()?.parse().ok()?);
        let turn = tokens.next()?.parse().ok()?;
        let time = tokens.next()?.parse().ok()?;
        tokens.next()?;
        Some(Self { stream, consumer, delivered, sequence, turn, time })
    }

    pub(super) fn published_at(&self) -> Timestamp {
        Timestamp::from_nanosecond(i128::from(self.time)).unwrap_or_default()
    }

    /// Returns an id for a message that has none: stream name and sequence.
    pub(super) fn id(&self) -> MessageId {
        MessageId::Text(SmolStr::new(format!("{}/{}", self.stream, self.sequence)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_ack_subject_are_read() {
        let want = AckInfo {
            stream: "EVT_a_b",
            consumer: "g=x",
            delivered: 2,
            sequence: 22,
            turn: 5,
            time: 1_700_000_000_000_000_123,
        };
        for reply in [
            "$JS.ACK.EVT_a_b.g=x.2.22.5.1700000000000000123.7",
            "$JS.ACK.hub.ACC.EVT_a_b.g=x.2.22.5.1700000000000000123.7",
            "$JS.ACK._.ACC.EVT_a_b.g=x.2.22.5.1700000000000000123.7.rnd",
        ] {
            assert_eq!(AckInfo::read(reply), Some(want), "{reply}");
        }
        for reply in ["", "$JS.ACK.a.b", "_INBOX.1", "$JS.ACK.a.b.x.1.1.1.1"] {
            assert_eq!(AckInfo::read(reply), None, "{reply}");
        }
    }

    #[test]
    fn values_keep_the_space_around_them() {
        let mut sent = Message::new(Subject::new("a.b").unwrap(), "text/plain", "x");
        for (name, value) in [("zeta", "  around  "), ("alpha", "%20 %"), ("empty", "")] {
            sent.headers.set(name, value).unwrap();
        }
        let headers = headers(&sent);
        let back = message(Some(&headers), sent.payload.clone(), sent.subject.clone(), || unreachable!());
        assert_eq!(back, sent);
    }
}
