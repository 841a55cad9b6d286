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
mod msgpack;
mod text;
pub(crate) mod time;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use smol_str::SmolStr;

use crate::codec::Codec;
use crate::context::{Context, TraceParent};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Headers, Message, MessageId};
pub(crate) use attributes::unquote;
use form::Form;
pub(crate) use form::is_structured;

/// Content type of a structured JSON event.
pub const STRUCTURED_JSON: &str = "application/cloudevents+json";
/// Content type of a structured MessagePack event.
pub const STRUCTURED_MSGPACK: &str = "application/cloudevents+msgpack";

/// The source of a message that arrived without an envelope.
pub const PLAIN_SOURCE: &str = "unknown";
/// The most attributes of one event that this library does not know (extensions).
pub const MAX_EXTENSIONS: usize = 64;

/// The mode in which an envelope is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attributes and data in one body.
    #[default]
    Structured,
    /// Attributes in headers, for readers that can read only plain payloads.
    Binary,
}

/// The attributes of an event, by their CloudEvents names.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Meta {
    /// Unique within `source`; the same in all retries.
    pub id: MessageId,
    /// The publisher: `/namespace/service`.
    pub source: SmolStr,
    /// The type of the event: `orders.placed.v1`.
    pub event_type: SmolStr,
    /// The time at which the event happened.
    pub time: Option<Timestamp>,
    /// The entity that the event is about.
    pub subject: Option<SmolStr>,
    /// MIME type of the data; an absent one means JSON in a structured JSON event.
    pub datacontenttype: Option<SmolStr>,
    /// The schema of the data.
    pub dataschema: Option<SmolStr>,
    /// The ordering key: events with the same key stay in order.
    pub partitionkey: Option<SmolStr>,
    /// The id of the flow to which the event belongs.
    pub correlationid: Option<MessageId>,
    /// The id of the event that caused it.
    pub causationid: Option<MessageId>,
    /// The trace span that published the event.
    pub traceparent: Option<TraceParent>,
    /// The vendor's trace state, passed on unchanged.
    pub tracestate: Option<SmolStr>,
    /// The time after which the event is not needed any more.
    pub expirytime: Option<Timestamp>,
    /// Attributes that this library does not know, as text.
    pub extensions: Vec<(SmolStr, SmolStr)>,
}

impl Meta {
    /// Creates the attributes of a new event of type `event_type` from `source`, with the current time.
    pub fn new(id: MessageId, source: impl Into<SmolStr>, event_type: impl Into<SmolStr>) -> Self {
        let mut meta = Self::empty();
        (meta.id, meta.source, meta.event_type) = (id, source.into(), event_type.into());
        meta.time = Some(Timestamp::now());
        meta
    }

    fn empty() -> Self {
        Self {
            id: MessageId::Text(SmolStr::default()),
            source: SmolStr::default(),
            event_type: SmolStr::default(),
            time: None,
            subject: None,
            datacontenttype: None,
            dataschema: None,
            partitionkey: None,
            correlationid: None,
            causationid: None,
            traceparent: None,
            tracestate: None,
            expirytime: None,
            extensions: Vec::new(),
        }
    }

    /// Takes correlation, cause and trace from the message that is being handled; without one, the event starts its
    /// own flow and trace.
    pub fn caused_by(&mut self, context: Option<&Context>) {
        match context {
            Some(context) => {
                self.correlationid = Some(context.correlation.clone());
                self.causationid = Some(context.causation.clone());
                self.traceparent = Some(context.trace.child());
                self.tracestate.clone_from(&context.tracestate);
            }
            None => {
                self.correlationid = Some(self.id.clone());
                self.traceparent = Some(TraceParent::root());
            }
        }
    }

    /// Returns the context in which this event is handled.
    pub fn context(&self) -> Context {
        Context {
            correlation: self.correlationid.as_ref().unwrap_or(&self.id).clone(),
            causation: self.id.clone(),
            trace: self.traceparent.map_or_else(TraceParent::root, TraceParent::child),
            // The state belongs to a trace: a new trace has none.
            tracestate: self.traceparent.and(self.tracestate.clone()),
        }
    }

    /// Visits every attribute that is set, in the order of writing, as text.
    fn for_each(&self, mut visit: impl FnMut(&str, &str)) {
        use std::fmt::Write;
        let mut text = String::with_capacity(64);
        let mut show = |name: &str, value: &dyn std::fmt::Display, visit: &mut dyn FnMut(&str, &str)| {
            text.clear();
            let _ = write!(text, "{value}");
            visit(name, &text);
        };
        let spell = |name: &str, id: &MessageId, visit: &mut dyn FnMut(&str, &str)| match id {
            MessageId::Uuid(id) => {
                visit(name, id.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()))
            }
            MessageId::Text(text) => visit(name, text),
        };
        visit("specversion", "1.0");
        spell("id", &self.id, &mut visit);
        visit("source", &self.source);
        visit("type", &self.event_type);
        if let Some(time) = &self.time {
            show("time", time, &mut visit);
        }
        let texts = [
            ("subject", &self.subject),
            ("datacontenttype", &self.datacontenttype),
            ("dataschema", &self.dataschema),
            ("partitionkey", &self.partitionkey),
            ("tracestate", &self.tracestate),
        ];
        for (name, value) in texts {
            if let Some(value) = value {
                visit(name, value);
            }
        }
        for (name, id) in [("correlationid", &self.correlationid), ("causationid", &self.causationid)] {
            if let Some(id) = id {
                spell(name, id, &mut visit);
            }
        }
        if let Some(trace) = &self.traceparent {
            show("traceparent", trace, &mut visit);
        }
        if let Some(time) = &self.expirytime {
            show("expirytime", time, &mut visit);
        }
        for (name, value) in &self.extensions {
            visit(name, value);
        }
    }

    /// Returns the number of attributes that [`for_each`](Self::for_each) visits, without formatting any of them.
    fn count(&self) -> u32 {
        let optional = [
            self.time.is_some(),
            self.subject.is_some(),
            self.datacontenttype.is_some(),
            self.dataschema.is_some(),
            self.partitionkey.is_some(),
            self.tracestate.is_some(),
            self.correlationid.is_some(),
            self.causationid.is_some(),
            self.traceparent.is_some(),
            self.expirytime.is_some(),
        ];
        4 + optional.iter().filter(|set| **set).count() as u32 + self.extensions.len() as u32
    }
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
        match Form::of(message)? {
            Form::Json => json::read(&message.payload),
            Form::MsgPack => msgpack::read(&message.payload),
            Form::Binary => binary::read(message),
            Form::Plain => Err(Error::new(
                ErrorKind::Decode,
                "the message is not a CloudEvent: it has no `id`, `source` and `type`; add `.plain()` to the handler to accept plain data",
            )
            .during("decode envelope")),
        }
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
        match Form::of(message)? {
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
        }
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
