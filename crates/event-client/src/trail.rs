//! The log fields that identify an event: its id, its correlation id and its trace.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::context::{Context, TraceParent};
use crate::envelope::Envelope;
use crate::message::Message;

/// The fields of a log line about one message, with the names that [log shipping](crate::log) recognises.
///
/// It is built only where a failure is logged, so that messages without a failure cost nothing.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    pub(crate) event_id: String,
    pub(crate) correlation_id: Option<String>,
    pub(crate) trace_id: Option<String>,
    pub(crate) span_id: Option<String>,
}

/// Longest id in bytes that is read from a body that is not a valid event; a longer one is cut.
const LONGEST: usize = 256;

/// The attributes that can be read from a JSON body that is not a valid event.
#[derive(Default, Deserialize)]
struct Remains {
    id: Option<serde_json::Value>,
    correlationid: Option<serde_json::Value>,
    traceparent: Option<serde_json::Value>,
}

impl Trail {
    /// The fields for an event that a handler processed in `context`.
    pub(crate) fn of(context: &Context) -> Self {
        let trail =
            Self { event_id: context.causation.to_string(), ..Self::default() }.traced(Some(context.trace));
        Self { correlation_id: Some(context.correlation.to_string()), ..trail }
    }

    /// The fields for a message that no handler received: from its envelope, or from the readable part of a broken one.
    pub(crate) fn read(message: &Message) -> Self {
        if let Ok(envelope) = Envelope::read(message) {
            let meta = envelope.meta;
            let trail = Self { event_id: meta.id.to_string(), ..Self::default() }.traced(meta.traceparent);
            return Self { correlation_id: meta.correlationid.map(|id| id.to_string()), ..trail };
        }
        let body: Remains = serde_json::from_slice(&message.payload).unwrap_or_default();
        let cut = |text: &str| text[..text.floor_char_boundary(LONGEST)].to_owned();
        let text = |value: Option<serde_json::Value>| value.and_then(|value| value.as_str().map(cut));
        let header = |name| message.headers.get(name).map(str::to_owned);
        let trace = text(body.traceparent).or_else(|| header("traceparent"));
        let trail = Self {
            event_id: text(body.id).or_else(|| header("ce-id")).unwrap_or_else(|| message.id.to_string()),
            correlation_id: text(body.correlationid).or_else(|| header("ce-correlationid")),
            ..Self::default()
        };
        trail.traced(trace.and_then(|trace| trace.parse().ok()))
    }

    /// The fields for an event in an outbox, from the headers in its row.
    pub(crate) fn staged(headers: &str) -> Self {
        let headers: BTreeMap<String, String> = serde_json::from_str(headers).unwrap_or_default();
        let trail = Self { correlation_id: headers.get("ce-correlationid").cloned(), ..Self::default() };
        trail.traced(headers.get("traceparent").and_then(|trace| trace.parse().ok()))
    }

    fn traced(self, trace: Option<TraceParent>) -> Self {
        Self {
            trace_id: trace.map(|trace| format!("{:032x}", trace.trace_id)),
            span_id: trace.map(|trace| format!("{:016x}", trace.span_id)),
            ..self
        }
    }
}
