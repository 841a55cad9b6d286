//! The log record, modelled on OpenTelemetry's, and the batch in which records are sent.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Attributes, Severity};
use crate::Event;

/// One log record: the message of a service with its time, its severity and its context.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LogRecord {
    /// UUIDv7, set by the program that created the record.
    pub id: Uuid,
    /// Event time, by the clock of the service that logged the record.
    pub time: Timestamp,
    /// Arrival time by the aggregator's clock; `None` until the aggregator has received the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived: Option<Timestamp>,
    /// Severity on the common scale.
    #[serde(default)]
    pub severity: Severity,
    /// The level as the logger wrote it, such as `WARNING` or `warn`; any text.
    pub level: String,
    /// The service that logged the record. Left out inside a [`LogBatch`] when it is the batch's service.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The message, which OpenTelemetry calls the body.
    pub message: String,
    /// All other values of the record, by name.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    #[schemars(with = "Map<String, Value>")]
    pub attributes: Attributes,
    /// W3C trace id, 32 hex digits when the sender keeps to the standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// W3C span id, 16 hex digits when the sender keeps to the standard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span_id: Option<String>,
    /// The id of the request that was being answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The correlation id of the event that was being handled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The body as it was received, when it was invalid and had to be repaired; `None` for every valid record. Bytes
    /// that are not UTF-8 are replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<String>,
}

impl LogRecord {
    /// Creates a record of `service` with the current time, a level and a message.
    pub fn new(service: impl Into<String>, level: impl Into<String>, message: impl Into<String>) -> Self {
        let level = level.into();
        Self {
            id: Uuid::now_v7(),
            time: Timestamp::now(),
            arrived: None,
            severity: Severity::from_word(&level).unwrap_or_default(),
            level,
            service: service.into(),
            message: message.into(),
            attributes: Attributes::default(),
            trace_id: None,
            span_id: None,
            request_id: None,
            correlation_id: None,
            raw: None,
        }
    }

    /// Whether the record was received in an invalid form and repaired; then [`raw`](Self::raw) contains the received
    /// body.
    pub fn repaired(&self) -> bool {
        self.raw.is_some()
    }

    /// Returns the approximate number of bytes that the record holds in memory; bounds of queues and buffers count
    /// these.
    pub fn weight(&self) -> usize {
        let ids = [&self.trace_id, &self.span_id, &self.request_id, &self.correlation_id, &self.raw];
        size_of::<Self>()
            + self.level.len()
            + self.service.len()
            + self.message.len()
            + self.attributes.weight()
            + ids.into_iter().flatten().map(String::len).sum::<usize>()
    }
}

/// Records of one service that are sent to the aggregator: an event of the topic `logs`.
#[derive(Clone, Debug, Default, PartialEq, Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "logs.shipped", version = 1, key = service)]
pub struct LogBatch {
    /// The service of every record that names none itself.
    pub service: String,
    /// The records, oldest first.
    pub records: Vec<LogRecord>,
    /// The counts of records dropped since the last batch: the queue was full, or a record was too large.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped: Vec<Dropped>,
}

/// The number of records of one severity that a shipper dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Dropped {
    /// Severity of the dropped records.
    pub severity: Severity,
    /// The number of dropped records.
    pub count: u64,
}

impl LogBatch {
    /// The pattern to which an aggregator subscribes: all events of the topic `logs`.
    pub const PATTERN: &'static str = "logs.>";

    /// Returns the records, each with its service filled in.
    pub fn into_records(self) -> Vec<LogRecord> {
        let Self { service, mut records, .. } = self;
        for record in &mut records {
            if record.service.is_empty() {
                record.service.clone_from(&service);
            }
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_own_json() {
        let mut record = LogRecord::new("billing", "Warning", "card refused");
        record.attributes.insert("response_time".into(), Value::from(0.004_779_577_255_249_023_4));
        record.trace_id = Some("580d7b71d8f564135be6128e18c26797".into());
        let text = serde_json::to_string(&record).expect("a record is JSON");
        assert!(!text.contains("\"raw\""), "an absent field is not written: {text}");
        assert_eq!(serde_json::from_str::<LogRecord>(&text).expect("its own JSON"), record);
        assert_eq!(record.severity, Severity::WARN);
    }

    #[test]
    fn a_batch_names_the_service_once() {
        let mut batch = LogBatch {
            service: "billing".into(),
            records: vec![LogRecord::new("", "info", "a")],
            dropped: vec![],
        };
        batch.records.push(LogRecord::new("other", "info", "b"));
        let services: Vec<String> = batch.into_records().into_iter().map(|record| record.service).collect();
        assert_eq!(services, ["billing", "other"]);
    }

    #[test]
    fn a_bigger_record_weighs_more() {
        let small = LogRecord::new("s", "info", "m");
        let mut big = small.clone();
        big.attributes.insert("k".into(), Value::from("x".repeat(10_000)));
        assert!(big.weight() > small.weight() + 10_000);
    }
}
