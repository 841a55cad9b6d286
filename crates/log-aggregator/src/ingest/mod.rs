//! How records come in: what a submission may look like, what is repaired, and the queue before the store.

mod bus;
mod queue;
mod repair;
pub(crate) mod submission;

pub(crate) use bus::{Consumer, GROUP};
pub(crate) use queue::Ingest;
