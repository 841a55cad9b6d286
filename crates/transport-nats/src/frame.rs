//! Converts frames of an answer to NATS messages and back. Errors use the headers of NATS' own service tools.

use async_nats::{HeaderMap, Message as NatsMessage};
use bytes::Bytes;
use smol_str::SmolStr;

use super::codec;
use event_transport::message::{Headers, Message, MessageId};
use event_transport::status::{Code, STATUS, STATUS_MESSAGE};
use event_transport::subject::Subject;
use event_transport::{Frame, headers};

/// Frames of one answer that may be buffered for the caller; as many again may be in transit.
pub(super) const FRAMES: usize = 64;
/// Values of a frame's header besides `more` and `last`.
pub(super) const BUSY: &str = "busy";
pub(super) const HELD: &str = "held";
pub(super) const GONE: &str = "gone";

/// Puts a frame's headers into a message, so that the codec can write them. The id is not used.
fn vessel(headers: Headers, content_type: SmolStr) -> Message {
    let subject = Subject::new("frame").expect("a valid name");
    let mut message =
        Message::with_id(MessageId::Text(SmolStr::default()), subject, content_type, Bytes::new());
    message.headers = headers;
    message
}

/// Returns the headers of a frame.
pub(super) fn frame_headers(frame: &mut Frame) -> HeaderMap {
    let message = vessel(std::mem::take(&mut frame.headers), frame.content_type.clone());
    let mut headers = codec::headers(&message);
    frame.headers = message.headers;
    headers.insert(headers::FRAME, if frame.last { "last" } else { "more" });
    headers
}

pub(super) fn read_frame(message: NatsMessage) -> Frame {
    let last =
        message.headers.as_ref().and_then(|headers| codec::get(headers, headers::FRAME)) != Some("more");
    let subject = Subject::new("frame").expect("a valid name");
    let read = codec::message(message.headers.as_ref(), message.payload, subject, || {
        MessageId::Text(SmolStr::default())
    });
    Frame { headers: read.headers, content_type: read.content_type, payload: read.payload, last }
}

pub(super) fn error_headers(code: u16, text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    codec::put(&mut headers, "Nats-Service-Error", text);
    codec::put(&mut headers, "Nats-Service-Error-Code", &code.to_string());
    headers
}

/// Adds NATS' service error headers when a frame reports an error. Returns the text of the error.
pub(super) fn failure(frame: &Frame, headers: &mut HeaderMap) -> Option<SmolStr> {
    let code: Code = frame.headers.get(STATUS)?.parse().unwrap_or(Code::Unknown);
    if code == Code::Ok {
        return None;
    }
    let text = frame.headers.get(STATUS_MESSAGE).map(headers::unescape).filter(|text| !text.is_empty());
    let text = text.unwrap_or_else(|| code.as_str().into());
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for (name, values) in error_headers(code.http(), line.trim()).iter() {
        if let Some(value) = values.first() {
            codec::put(headers, name.as_ref(), value.as_str());
        }
    }
    Some(text)
}
