//! Encodes and decodes requests and answer frames: lines of `name: value`, an empty line, the body.
//!
//! Any client can write a request: `bus-subject`, `bus-reply-to` (a channel), `bus-request` (an id for it),
//! `bus-deadline` (Unix milliseconds), and the headers of [`headers`].

use std::time::Duration;

use bytes::Bytes;
use smol_str::SmolStr;

use event_transport::Frame;
use event_transport::headers::{self, Reader};
use event_transport::message::{Headers, Message, MessageId};
use event_transport::subject::Subject;

/// Maximum number of frames of one answer that are in flight or wait for the caller.
pub(super) const WINDOW: usize = 64;
/// Interval in which a server reports that it is alive and working.
pub(super) const BEAT: Duration = Duration::from_secs(2);
/// A server without a report for this time counts as dead.
pub(super) const LIFE: Duration = Duration::from_secs(8);
/// Header: the id of the request to which a frame belongs.
pub(super) const REQUEST: &str = "bus-request";
/// Header of the first frame: the channel on which the responder receives credit.
pub(super) const FROM: &str = "bus-from";
/// Header of a message to a responder: the number of further frames that it may send.
pub(super) const CREDIT: &str = "bus-credit";

/// Headers and a body.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) headers: Vec<(SmolStr, SmolStr)>,
    pub(super) body: Bytes,
}

impl Packet {
    /// Parses a packet; bytes without this format become a body without headers.
    pub(super) fn read(bytes: Bytes) -> Self {
        let mut headers = Vec::new();
        let mut at = 0;
        loop {
            let Some(end) = memchr(&bytes[at..]) else { return Self { headers: Vec::new(), body: bytes } };
            let line = String::from_utf8_lossy(&bytes[at..at + end]);
            let line = line.strip_suffix('\r').unwrap_or(&line);
            at += end + 1;
            if line.is_empty() {
                return Self { headers, body: bytes.slice(at..) };
            }
            let Some((name, value)) = line.split_once(':') else {
                return Self { headers: Vec::new(), body: bytes };
            };
            headers.push((name.into(), value.strip_prefix(' ').unwrap_or(value).into()));
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Converts a request into its message.
    pub(super) fn message(self, subject: &Subject) -> Message {
        let mut reader = Reader::default();
        self.headers.iter().for_each(|(name, value)| reader.header(name, value));
        reader.finish(subject.clone(), self.body, MessageId::now)
    }

    /// Converts the packet into a frame of an answer.
    pub(super) fn frame(self, last: bool) -> Frame {
        let mut headers = Headers::new();
        let mut content_type = SmolStr::default();
        for (name, value) in self.headers {
            match name.as_str() {
                headers::CONTENT_TYPE => content_type = value,
                name if name.starts_with("bus-") => {}
                _ => headers.restore(name, value),
            }
        }
        Frame { headers, content_type, payload: self.body, last }
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

/// Writes a packet.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn header(&mut self, name: &str, value: impl AsRef<str>) -> &mut Self {
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b": ");
        self.0.extend_from_slice(value.as_ref().as_bytes());
        self.0.push(b'\n');
        self
    }

    pub(super) fn finish(&mut self, body: &[u8]) -> Bytes {
        let mut bytes = std::mem::take(&mut self.0);
        bytes.push(b'\n');
        bytes.extend_from_slice(body);
        bytes.into()
    }
}

/// Encodes a request with the library's headers.
pub(super) fn request(message: &Message, number: u64, reply_to: &str, deadline: i64) -> Bytes {
    let mut writer = Writer(Vec::with_capacity(message.size() + 256));
    writer.header(headers::SUBJECT, message.subject.as_str());
    writer.header(headers::REPLY_TO, reply_to).header(REQUEST, number.to_string());
    writer.header(headers::DEADLINE, deadline.to_string());
    headers::write(message, |name, value| {
        writer.header(name, value);
    });
    writer.finish(&message.payload)
}

/// Encodes a frame of the answer to `request`.
pub(super) fn frame(frame: &Frame, request: &str, from: Option<&str>) -> Bytes {
    let mut writer = Writer(Vec::with_capacity(frame.payload.len() + 128));
    writer.header(REQUEST, request).header(headers::FRAME, if frame.last { "last" } else { "more" });
    if let Some(from) = from {
        writer.header(FROM, from);
    }
    if !frame.content_type.is_empty() {
        writer.header(headers::CONTENT_TYPE, &frame.content_type);
    }
    for (name, value) in frame.headers.iter() {
        writer.header(name, value);
    }
    writer.finish(&frame.payload)
}

/// Encodes a frame that reports the state of the request: `working` or `abandoned`.
pub(super) fn notice(word: &str, request: &str) -> Bytes {
    Writer::default().header(REQUEST, request).header(headers::FRAME, word).finish(b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_whole() {
        let mut message = Message::new(Subject::new("shop.quote").unwrap(), "text/plain", "a\n\nb");
        message.key = Some("ä".into());
        for (name, value) in [("spaces", "  around  "), ("empty", ""), ("utf", "größe: €")] {
            message.headers.set(name, value).unwrap();
        }
        let packet = Packet::read(request(&message, 7, "inbox", 99));
        assert_eq!((packet.get(REQUEST), packet.get(headers::REPLY_TO)), (Some("7"), Some("inbox")));
        assert_eq!(packet.message(&message.subject), message);
    }

    #[test]
    fn a_frame_comes_back_whole() {
        let mut sent =
            Frame { headers: Headers::new(), content_type: "x/y".into(), payload: "1".into(), last: true };
        sent.headers.set("status", "5").unwrap();
        let packet = Packet::read(frame(&sent, "7", Some("inbox")));
        assert_eq!((packet.get(headers::FRAME), packet.get(FROM)), (Some("last"), Some("inbox")));
        assert_eq!(packet.frame(true), sent);
    }

    #[test]
    fn bytes_without_the_packet_format_are_a_body() {
        for bytes in ["", "hello", "hello\n\nyou", "a: b\nc"] {
            let packet = Packet::read(bytes.into());
            assert_eq!((packet.headers.len(), &packet.body[..]), (0, bytes.as_bytes()), "{bytes:?}");
        }
    }
}
