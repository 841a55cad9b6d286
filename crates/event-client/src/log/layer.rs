//! The tracing layer: converts each tracing event into a log record and queues it.

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
use crate::context::Context as Handling;

/// The longest text of one field in bytes; a longer text is cut.
const LONGEST: usize = 64 * 1024;

tokio::task_local! {
    /// Set while the shipper works: the log lines of this task are about shipping and are not shipped.
    static SHIPPING: ();
}

/// Runs the shipper; the layer leaves its log lines out.
pub(super) fn unshipped<F: Future>(shipper: F) -> impl Future<Output = F::Output> {
    SHIPPING.scope((), shipper)
}

/// Converts logged events into records and queues them for the shipper. Created by [`shipping`](super::shipping).
///
/// Fields of the event and of its enclosing spans become attributes, except `trace_id`, `span_id`, `request_id` and
/// `correlation_id`, which become fields of the record. A missing trace or correlation id is taken from the bus event
/// that is being handled, the span id together with the trace id.
#[derive(Debug)]
pub struct ShippingLayer {
    pub(super) queue: Arc<Queue>,
}

/// The fields of a span, stored in the span's extensions.
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
        if SHIPPING.try_with(|()| ()).is_ok() || is_below_the_bus(metadata.target(), *metadata.level()) {
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
            // A span id is useless without its trace id, so both are set or none.
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

/// Whether a line comes from the bus or its storage at a level below INFO. They log such lines for each message;
/// shipping a line would cause more lines of the same kind, without end.
fn is_below_the_bus(target: &str, level: Level) -> bool {
    const CRATES: [&str; 16] = [
        "event_client",
        "event_transport",
        "transport_sqlite",
        "transport_nats",
        "transport_redis",
        "transport_rabbitmq",
        "sqlx",
        "async_nats",
        "redis",
        "lapin",
        "amq_protocol",
        "async_rs",
        "tcp_stream",
        "rustls",
        "tokio",
        "mio",
    ];
    let name = target.split("::").next().unwrap_or(target);
    level > Level::INFO && (CRATES.contains(&name) || name.starts_with("sqlx_"))
}

/// Collects fields as JSON.
struct Collect<'a> {
    fields: &'a mut Map<String, Value>,
    /// Receives the message; without it the message is one of the fields.
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
        // Returns an error when the limit is reached; the text up to the limit is kept.
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
        // JSON has no infinities and no NaN: they become text.
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

/// A text of at most [`LONGEST`] bytes: a huge value is not formatted to its end.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = LONGEST - self.0.len();
        self.0.push_str(&more[..more.floor_char_boundary(room)]);
        if more.len() > room { Err(fmt::Error) } else { Ok(()) }
    }
}
