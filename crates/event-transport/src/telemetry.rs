//! Names of the metrics, labels and span fields of this crate.
//!
//! They follow OpenTelemetry's conventions for messaging and remote calls
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/>), which are still in development: when they change, this
//! file changes. Exporters for Prometheus replace the dots with underscores. Durations are in seconds.

use std::sync::Once;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal $(, $describe:ident $unit:ident $what:literal)?;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Registers units and descriptions of the metrics with the recorder, once per process.
        pub fn describe() {
            static DESCRIBED: Once = Once::new();
            DESCRIBED.call_once(|| {
                $($(metrics::$describe!($text, metrics::Unit::$unit, $what);)?)*
            });
        }
    };
}

names! {
    /// Counter: events handled, by outcome.
    PROCESSED = "messaging.process.messages", describe_counter Count "events handled, by outcome";
    /// Histogram: time to handle an event.
    PROCESS_DURATION = "messaging.process.duration", describe_histogram Seconds "time to handle an event";
    /// Counter: requests answered, by the outcome of their handler.
    SERVED = "rpc.server.requests", describe_counter Count "requests answered, by outcome";
    /// Histogram: time to answer a request.
    SERVE_DURATION = "rpc.server.duration", describe_histogram Seconds "time to answer a request";
    /// Counter: requests made, by status.
    REQUESTED = "rpc.client.requests", describe_counter Count "requests made, by status";
    /// Histogram: time until the reply arrived; for streams, until the first chunk arrived.
    REQUEST_DURATION = "rpc.client.duration", describe_histogram Seconds "time until the reply arrived";
    /// Gauge: calls in progress.
    IN_FLIGHT = "messaging.in_flight", describe_gauge Count "calls in progress";
    /// Histogram: age of an event when its handler starts, from the time at which it was stored.
    AGE = "messaging.message.age", describe_histogram Seconds "age of an event when its handler starts";
    /// Counter: messages that a broadcast subscription missed, because the transport dropped them before it took them.
    BROADCAST_MISSED = "messaging.broadcast.missed", describe_counter Count "messages that slow broadcast subscribers missed";
    /// Counter: messages that a transport skipped because they had expired.
    EXPIRED = "event_client_expired_total", describe_counter Count "expired messages that were skipped";
    /// Gauge: messages that are stored and not yet fetched by the group, retries included.
    GROUP_WAITING = "messaging.group.waiting", describe_gauge Count "messages that the group has not fetched yet, retries included";
    /// Gauge: messages that are fetched and not settled.
    GROUP_IN_FLIGHT = "messaging.group.in_flight", describe_gauge Count "messages fetched and not settled";
    /// Gauge: messages that failed and wait for a retry.
    GROUP_RETRYING = "messaging.group.retrying", describe_gauge Count "messages that wait for a retry";
    /// Gauge: dead letters.
    GROUP_DEAD = "messaging.group.dead", describe_gauge Count "dead letters";
    /// Gauge: age of the oldest unsettled message; 0 when there is none.
    GROUP_OLDEST = "messaging.group.oldest_unsettled", describe_gauge Seconds "age of the oldest unsettled message";
    /// Gauge: connected consumers, where the transport can count them.
    GROUP_MEMBERS = "messaging.group.members", describe_gauge Count "consumers connected";
    /// Gauge: 0 closed, 1 half-open, 2 open.
    CIRCUIT_STATE = "circuit_breaker.state", describe_gauge Count "0 closed, 1 half-open, 2 open";

    /// Label and span field: the name of the transport.
    SYSTEM = "messaging.system";
    /// Label of the counters of one transport's own work: the name of the transport, with the values of [`SYSTEM`].
    TRANSPORT = "transport";
    /// Label and span field: `process`, `serve` or `request`.
    OPERATION = "messaging.operation.type";
    /// Label and span field: the subject.
    DESTINATION = "messaging.destination.name";
    /// Label and span field: the handler's group.
    GROUP = "messaging.consumer.group.name";
    /// Span field: the message's id.
    MESSAGE_ID = "messaging.message.id";
    /// Span field: the correlation id of the event's flow.
    CONVERSATION_ID = "messaging.message.conversation_id";
    /// Span field: the trace id, 32 hexadecimal digits.
    TRACE_ID = "trace_id";
    /// Span field: the span id, 16 hexadecimal digits.
    SPAN_ID = "span_id";
    /// Label and span field: the result of the operation: an outcome, a status code or an error's kind.
    OUTCOME = "outcome";
    /// Label: the name of the circuit breaker.
    CIRCUIT = "circuit";
}

/// Counts messages that `transport` skipped because they had expired.
#[inline]
pub fn count_expired(transport: &'static str, messages: u64) {
    if messages > 0 {
        metrics::counter!(EXPIRED, TRANSPORT => transport).increment(messages);
    }
}
