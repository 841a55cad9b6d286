//! The envelope: CloudEvents 1.0 around a payload that stays encoded until a handler needs it.
//!
//! Structured mode puts attributes and data into one body (`application/cloudevents+json`, or
//! `application/cloudevents+msgpack`, which is a format of this library: a map whose `data` is a nested value).
//! Binary mode puts the attributes into `ce-` headers and the bare payload into the body. Both modes are read.
//! Structured mode is written by default, because many headers cost some brokers half of their throughput.
//!
//! Written events are checked as strictly as read events: this library sends no event that its reader would refuse.
//! The reader accepts the following events of other producers although the specification does not require it:
//!
//! - times with more digits than nanoseconds (the further digits are cut off), times with a space instead of the `T`,
//!   and times in the last hours of the year 9999;
//! - numbers and booleans as values of extensions, including floats, which become text with all their digits;
//! - `data` beside a `data_base64` that is null and vice versa, and base64 without padding;
//! - text with control characters, and sources and schemas that are not URIs, because this library does not depend on
//!   them;
//! - a damaged `traceparent`: the event starts a new trace, as the Trace Context specification requires.
//!
//! Events of another version of the specification, batches and other formats are refused.
//!
//! Source: CloudEvents 1.0.2 (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>).

mod attributes;
mod binary;
mod form;
mod json;
mod meta;
mod msgpack;
mod text;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use smol_str::SmolStr;

use crate::codec::Codec;
use crate::message::{Headers, Message};
pub use attributes::MAX_EXTENSIONS;
pub use event_transport::cloudevents::{STRUCTURED_JSON, STRUCTURED_MSGPACK};
use event_transport::error::{Error, ErrorKind, Result};
use form::Form;
use meta::Decoded;
pub use meta::Meta;

/// The source of a message that arrived without an envelope.
pub const PLAIN_SOURCE: &str = "unknown";

/// The mode in which an envelope is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attributes and data in one body.
    #[default]
    Structured,
    /// Attributes in headers, for readers that can read only plain payloads.
    Binary,
}

/// A decoded envelope: attributes, and the data as it arrived.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// The attributes.
    pub meta: Meta,
    data: Bytes,
    codec: Option<Codec>,
}

impl Envelope {
    /// Reads the envelope of a message, in either mode. The message is structured when its content type declares it,
    /// in any letter case, or when it has no content type and its body is a structured event; it is binary when it
    /// has `ce-` headers.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] for a malformed envelope, a missing required attribute, and a message without an
    /// envelope.
    pub fn read(message: &Message) -> Result<Self> {
        let decoded = match Form::of(message)? {
            Form::Json => json::read(&message.payload),
            Form::MsgPack => msgpack::read(&message.payload),
            Form::Binary => binary::read(message),
            Form::Plain => Err(Error::new(
                ErrorKind::Decode,
                "the message is not a CloudEvent: it has no `id`, `source` and `type`; add `.plain()` to the handler to accept plain data",
            )
            .during("decode envelope")),
        };
        decoded.map(Self::from_decoded)
    }

    /// Reads the envelope of a message that may have none. A message without an envelope is plain data of the type
    /// that its subject names. Its attributes are derived:
    ///
    /// - `id` is the message's own. If the message arrived without one, the transport derives it from the message's
    ///   place in its log, so that it is the same in each delivery;
    /// - `source` is [`PLAIN_SOURCE`], `type` is the subject, `partitionkey` is the key;
    /// - `time` is `at`, the time of its publication.
    ///
    /// The content type defines the encoding of the data. Without a content type, the data is MessagePack if its
    /// first byte cannot begin a JSON text, and otherwise JSON.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] for a malformed message that declares itself a CloudEvent.
    pub fn read_plain(message: &Message, at: Option<Timestamp>) -> Result<Self> {
        let decoded = match Form::of(message)? {
            Form::Json => json::read(&message.payload),
            Form::MsgPack => msgpack::read(&message.payload),
            Form::Binary => binary::read(message),
            Form::Plain => {
                let mut meta = Meta::empty();
                meta.id = message.id.clone();
                meta.source = SmolStr::new_static(PLAIN_SOURCE);
                meta.event_type = message.subject.as_str().into();
                meta.time = at;
                meta.partitionkey.clone_from(&message.key);
                let trace = |name| message.headers.get(name);
                meta.traceparent = trace("traceparent").and_then(|value| value.parse().ok());
                meta.tracestate = trace("tracestate").and_then(attributes::trace_state);
                Ok(binary::bare(meta, message))
            }
        };
        decoded.map(Self::from_decoded)
    }

    fn from_decoded((meta, data, codec): Decoded) -> Self {
        Self { meta, data, codec }
    }

    /// Returns the bytes of the data as they arrived.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Returns the encoding of the data; `None` for a content type that this library does not decode.
    pub fn codec(&self) -> Option<Codec> {
        self.codec
    }

    /// Decodes the data. Data whose content type is neither JSON nor MessagePack is given as text to types that
    /// accept text.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] when the bytes do not fit `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        match self.codec {
            Some(codec) => codec.decode(&self.data),
            None => self.decode_text().ok_or_else(|| {
                Error::new(ErrorKind::Decode, "the data is neither JSON nor MessagePack")
                    .with("datacontenttype", self.meta.datacontenttype.as_deref().unwrap_or("none"))
            }),
        }
    }

    fn decode_text<T: DeserializeOwned>(&self) -> Option<T> {
        let text = std::str::from_utf8(&self.data).ok()?;
        T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text)).ok()
    }

    /// Returns the data as one line of JSON text, with every digit of its numbers; `None` when it cannot be decoded.
    /// MessagePack values that JSON lacks are converted: binary data and extension types become base64, keys that are
    /// not text become text, NaN and infinity become null.
    pub fn json(&self) -> Option<Box<RawValue>> {
        text::json(&self.data, self.codec)
    }
}

/// Writes an envelope; returns the content type, the headers and the body.
///
/// # Errors
/// [`ErrorKind::Encode`] when the data cannot be encoded, and for attributes that [`Envelope::read`] would refuse, such
/// as an empty id or source.
pub fn write<T: Serialize + ?Sized>(
    meta: &mut Meta,
    data: &T,
    codec: Codec,
    mode: Mode,
) -> Result<(SmolStr, Headers, Bytes)> {
    if meta.datacontenttype.is_none() {
        meta.datacontenttype = Some(SmolStr::new_static(codec.content_type()));
    }
    meta.check(ErrorKind::Encode)?;
    match (mode, codec) {
        (Mode::Structured, Codec::Json) => {
            Ok((SmolStr::new_static(STRUCTURED_JSON), Headers::new(), json::write(meta, data)?))
        }
        (Mode::Structured, Codec::MsgPack) => {
            Ok((SmolStr::new_static(STRUCTURED_MSGPACK), Headers::new(), msgpack::write(meta, data)?))
        }
        (Mode::Binary, _) => binary::write(meta, data, codec),
    }
}

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod tests;
