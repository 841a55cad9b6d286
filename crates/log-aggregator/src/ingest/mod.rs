//! Accepts records: reads submissions and log batches, repairs broken JSON, and queues the records for the store.

mod bus;
mod encoding;
mod fields;
pub(crate) mod problem;
mod queue;
mod repair;
pub(crate) mod submission;
mod time;

pub(crate) use bus::{Consumer, GROUP};
pub(crate) use queue::Ingest;
