//! Detects the form in which a message carries an event, from its content type, headers and body.

use memchr::memmem;

use crate::message::Message;
use event_transport::cloudevents::{STRUCTURED, STRUCTURED_JSON, STRUCTURED_MSGPACK, essence, is_structured};
use event_transport::error::{Error, ErrorKind, Result};

/// The form in which a message carries its event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    MsgPack,
    Binary,
    /// The message does not declare an event.
    Plain,
}

impl Form {
    /// Detects the form of a message.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] for a structured event in a format that this library does not read.
    pub(super) fn of(message: &Message) -> Result<Self> {
        let content_type = message.content_type.as_str();
        // Nearly every message has one of these content types, in exactly this spelling.
        match content_type {
            STRUCTURED_JSON => return Ok(Self::Json),
            STRUCTURED_MSGPACK => return Ok(Self::MsgPack),
            _ => {}
        }
        let binary = message.headers.iter().any(|(name, _)| name.starts_with("ce-"));
        let essence = essence(content_type);
        if is_structured(content_type) {
            return match essence[STRUCTURED.len()..].to_ascii_lowercase().as_str() {
                "" | "+json" => Ok(Self::Json),
                "+msgpack" | "+x-msgpack" | "+vnd.msgpack" => Ok(Self::MsgPack),
                _ if binary => Ok(Self::Binary),
                _ => Err(Error::new(
                    ErrorKind::Decode,
                    "a structured event must be JSON or MessagePack, with one event in each message",
                )
                .during("decode envelope")
                .with("content-type", &content_type[..content_type.floor_char_boundary(80)])),
            };
        }
        Ok(match message.payload.first() {
            _ if binary => Self::Binary,
            // A message without headers can only be structured; its body shows whether it is.
            Some(first) if content_type.is_empty() => {
                let says_so = || memmem::find(&message.payload, b"specversion").is_some();
                match first {
                    b'{' | b' ' | b'\t' | b'\r' | b'\n' if says_so() => Self::Json,
                    0x80..=0x8f | 0xde | 0xdf if says_so() => Self::MsgPack,
                    _ => Self::Plain,
                }
            }
            _ => Self::Plain,
        })
    }
}
