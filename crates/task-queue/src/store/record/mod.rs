//! Defines the records that a store keeps, and the requests and answers of its methods.

mod json;
mod kind;
mod lease;
mod schedule;
mod state;
mod task;
mod worker;

pub use json::Json;
pub use kind::{TaskKind, Waiting};
pub use lease::{Attempt, Claim, Claimed, Leased, Outcome, Resolution, Settled, Settlement};
pub use schedule::{Firing, ScheduleRecord};
pub use state::State;
pub use task::{Enqueued, Filter, NewTask, QueueStats, TaskRecord};
pub use worker::{LeaseStatus, Maintenance, Renewal, WorkerInfo, WorkerRecord};

pub(crate) use kind::unique_key;
