//! The event of log shipping: a batch of a service's log records. The type is event-client's, whose log
//! shipper publishes it.

use event_client::log::{Attributes, Dropped, LogBatch, LogRecord, Severity};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use crate::sample::Sample;

impl Sample for LogBatch {
    /// Returns a batch of two records: one with every field that a service sets, and one with the fewest
    /// fields.
    fn sample() -> Self {
        let full = LogRecord {
            id: Uuid::from_u128(0x0193_4f2e_0000_7000_8000_0000_0000_0002),
            time: Timestamp::constant(1_763_683_200, 123_456_000),
            arrived: None,
            severity: Severity::WARN,
            level: "WARNING".into(),
            service: "billing-worker".into(),
            message: "card refused".into(),
            attributes: [("attempt".into(), json!(2)), ("reason".into(), json!("limit"))]
                .into_iter()
                .collect(),
            trace_id: Some("4bf92f3577b34da6a3ce929d0e0e4736".into()),
            span_id: Some("00f067aa0ba902b7".into()),
            request_id: Some("r-17".into()),
            correlation_id: Some("01934f2e-0000-7000-8000-000000000001".into()),
            raw: None,
        };
        let bare = LogRecord {
            id: Uuid::from_u128(0x0193_4f2e_0000_7000_8000_0000_0000_0003),
            time: Timestamp::constant(1_763_683_201, 0),
            arrived: None,
            severity: Severity::INFO,
            level: "INFO".into(),
            service: String::new(),
            message: "payment taken".into(),
            attributes: Attributes::default(),
            trace_id: None,
            span_id: None,
            request_id: None,
            correlation_id: None,
            raw: None,
        };
        Self {
            service: "billing".into(),
            records: vec![full, bare],
            dropped: vec![Dropped { severity: Severity::DEBUG, count: 3 }],
        }
    }
}
