//! The fetching task of a member: it pulls messages, leases them, and delivers them.

mod fetcher;
mod inputs;
mod leases;
mod receive;
mod sources;
mod subjects;

pub(super) use fetcher::Fetcher;
