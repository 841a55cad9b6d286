//! How records come in: what a submission may look like, what is repaired, and the queue before the store.

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
