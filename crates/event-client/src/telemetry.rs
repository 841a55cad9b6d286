//! Names of metrics, labels and span fields, all in one place.
//!
//! They follow OpenTelemetry's conventions for messaging and remote calls
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/>), which are still in development: when they change, this
//! file changes. Exporters for Prometheus turn the dots into underscores. Durations are in seconds.

use std::sync::Once;

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $text:literal $(, $describe:ident $unit:ident $what:literal)?;)*) => {
        $($(#[$doc])* pub const $name: &str = $text;)*

        /// Hands the metrics' units and meanings to the recorder, once for each process.
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
    /// Counter: requests answered, by status.
    SERVED = "rpc.server.requests", describe_counter Count "requests answered, by status";
    /// Histogram: time to answer a request.
    SERVE_DURATION = "rpc.server.duration", describe_histogram Seconds "time to answer a request";
    /// Counter: requests made, by status.
    REQUESTED = "rpc.client.requests", describe_counter Count "requests made, by status";
    /// Histogram: time until an answer came, for streams its first chunk.
    REQUEST_DURATION = "rpc.client.duration", describe_histogram Seconds "time until an answer came";
    /// Gauge: calls under way.
    IN_FLIGHT = "messaging.in_flight", describe_gauge Count "calls under way";
    /// Histogram: age of an event when its handler begins, from the moment it was stored.
    AGE = "messaging.message.age", describe_histogram Seconds "age of an event when its handler begins";
    /// Counter: messages that a broadcast subscription did not get, because it was slower than they are kept.
    BROADCAST_MISSED = "messaging.broadcast.missed", describe_counter Count "messages that slow broadcast subscribers missed";
    /// Gauge: stored and not yet taken by the group, retries included.
    GROUP_WAITING = "messaging.group.waiting", describe_gauge Count "messages that the group has not taken yet, retries included";
    /// Gauge: taken and not settled.
    GROUP_IN_FLIGHT = "messaging.group.in_flight", describe_gauge Count "messages taken and not settled";
    /// Gauge: failed and waiting to be tried again.
    GROUP_RETRYING = "messaging.group.retrying", describe_gauge Count "messages that wait for a retry";
    /// Gauge: given up.
    GROUP_DEAD = "messaging.group.dead", describe_gauge Count "dead letters";
    /// Gauge: age of the oldest message that is not settled; 0 when there is none.
    GROUP_OLDEST = "messaging.group.oldest_unsettled", describe_gauge Seconds "age of the oldest unsettled message";
    /// Gauge: consumers connected, where the transport knows.
    GROUP_MEMBERS = "messaging.group.members", describe_gauge Count "consumers connected";
    /// Gauge: 0 closed, 1 half-open, 2 open.
    CIRCUIT_STATE = "circuit_breaker.state", describe_gauge Count "0 closed, 1 half-open, 2 open";

    /// Label and span field: the transport.
    SYSTEM = "messaging.system";
    /// Label and span field: `process`, `serve` or `request`.
    OPERATION = "messaging.operation.type";
    /// Label and span field: the subject.
    DESTINATION = "messaging.destination.name";
    /// Label and span field: the handler's group.
    GROUP = "messaging.consumer.group.name";
    /// Span field: the message's id.
    MESSAGE_ID = "messaging.message.id";
    /// Span field: the flow that it belongs to.
    CONVERSATION_ID = "messaging.message.conversation_id";
    /// Span field: 32 hexadecimal digits.
    TRACE_ID = "trace_id";
    /// Span field: 16 hexadecimal digits.
    SPAN_ID = "span_id";
    /// Label and span field: how it ended: an outcome, a status code or an error's kind.
    OUTCOME = "outcome";
    /// Label: the circuit's name.
    CIRCUIT = "circuit";
}
