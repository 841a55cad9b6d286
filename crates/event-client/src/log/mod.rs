//! Logs on the bus: the record and batch that shippers send and the aggregator stores.

mod record;
mod severity;

pub use record::{Dropped, LogBatch, LogRecord};
pub use severity::Severity;
