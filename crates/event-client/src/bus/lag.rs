//! Export of each group's lag as metrics.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use smol_str::SmolStr;
use tokio_util::task::AbortOnDropHandle;

use super::Bus;
use crate::telemetry;
use crate::transport::GroupStatus;
use event_transport::bounds::LONGEST;

/// A running export of lag metrics. The export stops when this value is dropped.
#[derive(Debug)]
#[must_use = "the metrics stop when it is dropped"]
pub struct LagExport {
    _task: AbortOnDropHandle<()>,
}

impl Bus {
    /// Reads the state of all groups now and then at the interval `every`, and sets the gauges `messaging.group.*` of
    /// each group (`messaging_group_waiting{messaging_consumer_group_name="billing.orders.placed"}` for Prometheus).
    /// One process for each bus is enough: `backbone up` does it. The gauges of a deleted group are set to 0. `every`
    /// is at least 1 ms.
    pub fn export_lag(&self, every: Duration) -> LagExport {
        let bus = self.clone();
        let task = tokio::spawn(async move {
            telemetry::describe();
            let mut ticks = tokio::time::interval(every.clamp(Duration::from_millis(1), LONGEST));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let (mut known, mut failing) = (BTreeSet::new(), false);
            loop {
                ticks.tick().await;
                match bus.admin().groups().await {
                    Ok(groups) => {
                        failing = false;
                        let gone = std::mem::take(&mut known);
                        for status in groups {
                            set(&status);
                            known.insert(SmolStr::new(status.group.as_str()));
                        }
                        for group in gone.difference(&known) {
                            gauges(group).into_iter().for_each(|gauge| gauge.set(0.0));
                        }
                    }
                    // One log line for each outage: the tasks that use the bus log the details.
                    Err(error) if !failing => {
                        failing = true;
                        tracing::warn!(%error, "cannot read the lag of the groups; retrying");
                    }
                    Err(_) => {}
                }
            }
        });
        LagExport { _task: AbortOnDropHandle::new(task) }
    }
}

const NAMES: [&str; 6] = [
    telemetry::GROUP_WAITING,
    telemetry::GROUP_IN_FLIGHT,
    telemetry::GROUP_RETRYING,
    telemetry::GROUP_DEAD,
    telemetry::GROUP_OLDEST,
    telemetry::GROUP_MEMBERS,
];

fn gauges(group: &str) -> [metrics::Gauge; 6] {
    NAMES.map(|name| metrics::gauge!(name, telemetry::GROUP => group.to_owned()))
}

fn set(status: &GroupStatus) {
    let age = status.oldest_unsettled.map(|at| Timestamp::now().duration_since(at).as_secs_f64().max(0.0));
    let counts = [status.waiting, status.in_flight, status.retrying, status.dead].map(|count| count as f64);
    let values = [counts[0], counts[1], counts[2], counts[3], age.unwrap_or(0.0), status.members as f64];
    for (gauge, value) in gauges(status.group.as_str()).into_iter().zip(values) {
        gauge.set(value);
    }
}
