//! The attributes of an event: correlation, cause and trace, and their order when they are written.

use bytes::Bytes;
use jiff::Timestamp;
use smol_str::SmolStr;

use crate::codec::Codec;
use crate::context::{Context, TraceParent};
use crate::message::MessageId;

/// A message taken apart: the attributes, the data as it arrived, and the encoding of the data if it is known.
pub(super) type Decoded = (Meta, Bytes, Option<Codec>);

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

    pub(super) fn empty() -> Self {
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
    pub(super) fn for_each(&self, mut visit: impl FnMut(&str, &str)) {
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
    pub(super) fn count(&self) -> u32 {
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
