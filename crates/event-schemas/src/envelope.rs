//! Generates the JSON Schema of the event envelope.

use serde_json::{Value, json};

/// Returns the schema of every structured JSON event on the bus: CloudEvents 1.0 with the extensions used
/// here.
pub(crate) fn schema() -> Value {
    let text = |description: &str| json!({"type": "string", "minLength": 1, "description": description});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Envelope",
        "description": "CloudEvents 1.0 structured event. Content type application/cloudevents+json; \
                        application/cloudevents+msgpack is the same map in MessagePack.",
        "type": "object",
        "required": ["specversion", "id", "source", "type"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": text("Unique within source; a UUIDv7 from Rust services. Stable over retries."),
            "source": text("The publisher: /service"),
            "type": text("Name and version, equal to the subject it travels on: orders.placed.v2"),
            "time": {"type": "string", "format": "date-time", "description": "When it happened"},
            "subject": text("The entity it is about"),
            "datacontenttype": text("MIME type of data; absent means application/json"),
            "dataschema": text("URI of the schema of data"),
            "partitionkey": text("Events of one topic with the same key stay in order"),
            "correlationid": text("The flow it belongs to: the id of the event that started it"),
            "causationid": text("The id of the event that caused it"),
            "traceparent": {
                "type": "string",
                "pattern": "^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}",
                "description": "W3C trace context of the span that published it"
            },
            "tracestate": text("W3C vendor trace state"),
            "expirytime": {"type": "string", "format": "date-time", "description": "The time after which the event is not delivered"},
            "data": {"description": "The payload, by the schema of its type"},
            "data_base64": {"type": "string", "description": "A binary payload instead of data"}
        },
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]}
    })
}
