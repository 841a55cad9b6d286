//! The observed counts of one moment.

use std::collections::BTreeMap;

use serde::Serialize;

/// All counts at one moment, since the demonstration began.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Now {
    pub(super) published: BTreeMap<String, u64>,
    pub(super) handled: BTreeMap<String, u64>,
    pub(super) retried: BTreeMap<String, u64>,
    pub(super) dead: BTreeMap<String, u64>,
    pub(super) tasks: BTreeMap<String, u64>,
    pub(super) unfinished: u64,
    pub(super) fired: BTreeMap<String, u64>,
    pub(super) scheduled: BTreeMap<String, u64>,
    pub(super) logs: BTreeMap<String, u64>,
    pub(super) shipped: u64,
    pub(super) shed: u64,
}
