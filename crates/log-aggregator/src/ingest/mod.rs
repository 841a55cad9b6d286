//! How records come in: what a submission may look like, what is repaired, and the queue before the store.

mod queue;
mod repair;
pub(crate) mod submission;

pub(crate) use queue::Ingest;
