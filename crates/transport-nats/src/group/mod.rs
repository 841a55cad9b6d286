//! A durable group: its record, and a consumer on each topic that it takes.

pub(super) mod consumer;
mod groups;
mod record;

pub(super) use groups::{Groups, Standing};
pub(super) use record::{Record, StartAt};
