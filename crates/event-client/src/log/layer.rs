//! The tracing layer: makes a record of each event and queues it.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::queue::Queue;
use super::record::LogRecord;
use super::ship::shipping_now;
use crate::context::Context as Handling;

/// Longest text of one field in bytes; the rest is cut.
const LONGEST: usize = 64 * 1024;

/// Makes records of what is logged and hands them to the shipper. Made by [`shipping`](super::shipping).
///
/// Fields of the event and of the spans around it become attributes; `trace_id`, `span_id`, `request_id` and
/// `correlation_id` among them become the record's own. Where they are missing they are those of the bus event
/// that is being handled.
#[derive(Debug)]
pub struct ShippingLayer {
    pub(super) queue: Arc<Queue>,
}

/// The fields of a span, kept with it.
struct Fields(Map<String, Value>);

impl<S> Layer<S> for ShippingLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        attributes.record(&mut Collect { fields: &mut fields.0, message: None });
        if let Some(span) = context.span(id) {
            span.extensions_mut().replace(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(Fields(fields)) = span.extensions_mut().get_mut()
        {
            values.record(&mut Collect { fields, message: None });
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        if shipping_now() || is_below_the_bus(metadata.target(), *metadata.level()) {
            return;
        }
        let mut fields = Map::new();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(Fields(outer)) = span.extensions().get() {
                fields.extend(outer.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
        }
        let mut message = String::new();
        event.record(&mut Collect { fields: &mut fields, message: Some(&mut message) });
        let mut record = LogRecord::new("", metadata.level().as_str(), message);
        let mut id = |name: &str| match fields.remove(name) {
            Some(Value::String(text)) => Some(text),
            Some(other) => Some(other.to_string()),
            None => None,
        };
        record.trace_id = id("trace_id");
        record.span_id = id("span_id");
        record.request_id = id("request_id");
        record.correlation_id = id("correlation_id");
        if let Some(handling) = Handling::current() {
            // A span id without its trace would point nowhere: both or none.
            if record.trace_id.is_none() {
                record.trace_id = Some(format!("{:032x}", handling.trace.trace_id));
                record.span_id = Some(format!("{:016x}", handling.trace.span_id));
            }
            record.correlation_id.get_or_insert_with(|| handling.correlation.to_string());
        }
        fields.insert("target".into(), metadata.target().into());
        record.attributes = fields.into();
        self.queue.push(record);
    }
}

/// What the bus and its storage say about each message when they are asked for their insides: shipping it would
/// cause more of the same, without end.
fn is_below_the_bus(target: &str, level: Level) -> bool {
    level > Level::INFO && (target.starts_with("event_client") || target.starts_with("sqlx"))
}

/// Collects fields as JSON.
struct Collect<'a> {
    fields: &'a mut Map<String, Value>,
    /// Where the message goes; among the fields when there is none.
    message: Option<&'a mut String>,
}

impl Collect<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        match (&mut self.message, field.name(), value) {
            (Some(message), "message", Value::String(text)) => **message = text,
            (_, name, value) => {
                _ = self.fields.insert(name.strip_prefix("r#").unwrap_or(name).to_owned(), value)
            }
        }
    }
}

impl Visit for Collect<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Bounded(String::new());
        // Ends with an error when the bound is met; what was written until then is kept.
        let _ = write!(text, "{value:?}");
        self.put(field, text.0.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value[..value.floor_char_boundary(LONGEST)].into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinities: those become text.
        let number = serde_json::Number::from_f64(value).map(Value::Number);
        self.put(field, number.unwrap_or_else(|| value.to_string().into()));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = Bounded(String::new());
        let mut error = Some(value);
        while let Some(this) = error {
            let colon = if text.0.is_empty() { "" } else { ": " };
            if write!(text, "{colon}{this}").is_err() {
                break;
            }
            error = this.source();
        }
        self.put(field, text.0.into());
    }
}

/// Text that takes no more than [`LONGEST`] bytes: a huge value is not even written out.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        self.0.push_str(&more[..more.floor_char_boundary(room)]);
        if more.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}
