//! The envelope: CloudEvents 1.0 around a payload that stays undecoded until a handler wants it.
//!
//! Structured mode puts attributes and data into one body (`application/cloudevents+json`, or
//! `application/cloudevents+msgpack`, which is our own: a map whose `data` is a nested value). Binary mode puts
//! the attributes into `ce-` headers and the bare payload into the body. Both are read; structured is written by
//! default, because many headers cost some brokers half their throughput.
//!
//! Source: CloudEvents 1.0.2 (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md>).

mod binary;
mod json;
mod msgpack;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smol_str::SmolStr;

use crate::codec::Codec;
use crate::context::{Context, TraceParent};
use crate::error::{Error, ErrorKind, Result};
use crate::message::{Headers, Message, MessageId};

/// Content type of a structured JSON event.
pub const STRUCTURED_JSON: &str = "application/cloudevents+json";
/// Content type of a structured MessagePack event.
pub const STRUCTURED_MSGPACK: &str = "application/cloudevents+msgpack";

/// How an envelope is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Attributes and data in one body.
    #[default]
    Structured,
    /// Attributes in headers, for readers that know only plain payloads.
    Binary,
}

/// The attributes of an event, by their CloudEvents names.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Meta {
    /// Unique within `source`; stable over retries.
    pub id: MessageId,
    /// Who published it: `/namespace/service`.
    pub source: SmolStr,
    /// What happened: `orders.placed.v1`.
    pub kind: SmolStr,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The entity it is about.
    pub subject: Option<SmolStr>,
    /// MIME type of the data; absent means JSON in a structured JSON event.
    pub datacontenttype: Option<SmolStr>,
    /// The schema that the data keeps to.
    pub dataschema: Option<SmolStr>,
    /// Events with the same key stay in order.
    pub partitionkey: Option<SmolStr>,
    /// The flow it belongs to.
    pub correlationid: Option<MessageId>,
    /// The event that caused it.
    pub causationid: Option<MessageId>,
    /// The span that published it.
    pub traceparent: Option<TraceParent>,
    /// Vendor trace state, passed on untouched.
    pub tracestate: Option<SmolStr>,
    /// After this time nobody wants it.
    pub expirytime: Option<Timestamp>,
    /// Attributes that this library does not know, as text.
    pub extensions: Vec<(SmolStr, SmolStr)>,
}

impl Meta {
    /// Attributes of a new event of type `kind` from `source`, happening now.
    pub fn new(id: MessageId, source: impl Into<SmolStr>, kind: impl Into<SmolStr>) -> Self {
        let mut meta = Self::empty();
        (meta.id, meta.source, meta.kind) = (id, source.into(), kind.into());
        meta.time = Some(Timestamp::now());
        meta
    }

    fn empty() -> Self {
        Self {
            id: MessageId::Text(SmolStr::default()),
            source: SmolStr::default(),
            kind: SmolStr::default(),
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

    /// Takes correlation, cause and trace from what is being handled; a first event starts a flow of its own.
    pub fn caused_by(&mut self, context: Option<&Context>) {
        match context {
            Some(context) => {
                self.correlationid = Some(context.correlation.clone());
                self.causationid = Some(context.causation.clone());
                self.traceparent = Some(context.trace.child());
            }
            None => {
                self.correlationid = Some(self.id.clone());
                self.traceparent = Some(TraceParent::root());
            }
        }
    }

    /// The context in which this event is handled.
    pub fn context(&self) -> Context {
        Context {
            correlation: self.correlationid.as_ref().unwrap_or(&self.id).clone(),
            causation: self.id.clone(),
            trace: self.traceparent.map_or_else(TraceParent::root, TraceParent::child),
        }
    }

    /// Sets a known attribute or an extension from text, as read from a header or a JSON string.
    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let time = |value: &str| {
            value
                .parse::<Timestamp>()
                .map(Some)
                .map_err(|cause| invalid(name, "an RFC 3339 time").because(cause))
        };
        match name {
            "specversion" if value == "1.0" => {}
            "specversion" => {
                return Err(invalid(name, "1.0").with("specversion", &value[..value.floor_char_boundary(20)]));
            }
            "id" => self.id = value.into(),
            "source" => self.source = value.into(),
            "type" => self.kind = value.into(),
            "time" => self.time = time(value)?,
            "subject" => self.subject = Some(value.into()),
            "datacontenttype" => self.datacontenttype = Some(value.into()),
            "dataschema" => self.dataschema = Some(value.into()),
            "partitionkey" => self.partitionkey = Some(value.into()),
            "correlationid" => self.correlationid = Some(value.into()),
            "causationid" => self.causationid = Some(value.into()),
            // A damaged trace context must not cost the event: the specification says to start a new trace.
            "traceparent" => self.traceparent = value.parse().ok(),
            "tracestate" => self.tracestate = Some(value.into()),
            "expirytime" => self.expirytime = time(value)?,
            _ if self.extensions.len() >= 64 => return Err(invalid(name, "among at most 64 extensions")),
            _ => self.extensions.push((name.into(), value.into())),
        }
        Ok(())
    }

    /// Every attribute that is set, in writing order, as text.
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
        visit("type", &self.kind);
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

    /// How many [`for_each`](Self::for_each) visits, without writing any of them.
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

    fn require(&self) -> Result<()> {
        for (name, missing) in [
            ("id", matches!(&self.id, MessageId::Text(text) if text.is_empty())),
            ("source", self.source.is_empty()),
            ("type", self.kind.is_empty()),
        ] {
            if missing {
                return Err(Error::new(ErrorKind::Decode, format!("the event has no `{name}`"))
                    .during("decode envelope"));
            }
        }
        Ok(())
    }
}

fn invalid(name: &str, takes: &str) -> Error {
    Error::new(
        ErrorKind::Decode,
        format!("attribute `{}` must be {takes}", &name[..name.floor_char_boundary(40)]),
    )
    .during("decode envelope")
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
    /// Reads the envelope of a message, in whichever mode it came.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] for a malformed envelope or a missing required attribute.
    pub fn read(message: &Message) -> Result<Self> {
        let content_type = message.content_type.as_str();
        let is =
            |wanted: &str| content_type.split(';').next().is_some_and(|essence| essence.trim() == wanted);
        if is(STRUCTURED_JSON) {
            json::read(&message.payload)
        } else if is(STRUCTURED_MSGPACK) {
            msgpack::read(&message.payload)
        } else {
            binary::read(message)
        }
    }

    /// Reads the envelope of a request. That of a plain client may have none: then the body is the data, in JSON
    /// unless its content type says otherwise, and the subject is the type.
    ///
    /// # Errors
    /// As [`Envelope::read`].
    pub fn read_request(message: &Message) -> Result<Self> {
        let structured = message.content_type.trim_start().starts_with("application/cloudevents");
        if structured || message.headers.iter().any(|(name, _)| name.starts_with("ce-")) {
            return Self::read(message);
        }
        let mut meta = Meta::new(message.id.clone(), "unknown", message.subject.as_str());
        let codec = match message.content_type.as_str() {
            "" => Some(Codec::Json),
            content_type => {
                meta.datacontenttype = Some(content_type.into());
                Codec::from_content_type(content_type)
            }
        };
        Ok(Self { meta, data: message.payload.clone(), codec })
    }

    /// The data's bytes as they arrived.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The data's encoding; `None` for a content type that this library does not decode.
    pub fn codec(&self) -> Option<Codec> {
        self.codec
    }

    /// Decodes the data.
    ///
    /// # Errors
    /// [`ErrorKind::Decode`] when the content type is neither JSON nor MessagePack, or the bytes do not fit `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let Some(codec) = self.codec else {
            return Err(Error::new(ErrorKind::Decode, "the data is neither JSON nor MessagePack")
                .with("datacontenttype", self.meta.datacontenttype.as_deref().unwrap_or("none")));
        };
        codec.decode(&self.data)
    }
}

/// Writes an envelope; answers content type, headers and body.
///
/// # Errors
/// [`ErrorKind::Encode`] when the data cannot be encoded.
pub fn write<T: Serialize + ?Sized>(
    meta: &mut Meta,
    data: &T,
    codec: Codec,
    mode: Mode,
) -> Result<(SmolStr, Headers, Bytes)> {
    if meta.datacontenttype.is_none() {
        meta.datacontenttype = Some(SmolStr::new_static(codec.content_type()));
    }
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
mod tests;
