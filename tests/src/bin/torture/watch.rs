//! Reads memory and open files over time, and checks that they stay flat.

use crate::broker::Broker;
use crate::team::Team;
use std::collections::BTreeMap;
use std::fs;

/// The readings of each quantity, in order.
pub(crate) type Readings = BTreeMap<String, Vec<u64>>;

/// Reads every quantity once: of the processes that no fault hits, and of the server.
pub(crate) async fn read(readings: &mut Readings, team: &Team, broker: &Broker) {
    let mut note = |name: String, value: u64| readings.entry(name).or_default().push(value);
    for (name, id) in team.steady() {
        if let Some(bytes) = memory(id) {
            note(format!("{name}: memory"), bytes);
        }
        let files = fs::read_dir(format!("/proc/{id}/fd")).map_or(0, Iterator::count);
        note(format!("{name}: open files"), files as u64);
    }
    if let Some(bytes) = broker.process().and_then(test_servers::Process::memory) {
        note("server: memory".to_owned(), bytes);
    }
    for (name, value) in broker.counts().await {
        note(format!("server: {name}"), value);
    }
}

fn memory(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Printed but not checked: the server's memory holds the messages of the group without a worker, and pending
/// entries are the workers' messages in flight, more on a busier machine. A run does not end before there are
/// none.
const TOLD: [&str; 2] = ["server: memory", "server: pending entries"];

/// Compares the second quarter with the last one, for each quantity: returns a line, and whether the quantity
/// is flat.
pub(crate) fn verdicts(readings: &Readings) -> Vec<(String, bool)> {
    let mean = |values: &[u64]| values.iter().sum::<u64>() / values.len().max(1) as u64;
    let verdict = |(name, values): (&String, &Vec<u64>)| {
        let quarter = values.len() / 4;
        let (before, after) = (mean(&values[quarter..quarter * 2]), mean(&values[quarter * 3..]));
        let is_memory = name.ends_with("memory");
        let room = if is_memory { before / 4 + 16 * 1024 * 1024 } else { before / 10 + 8 };
        let flat = values.len() < 8 || after <= before + room || TOLD.contains(&name.as_str());
        let show = |value: u64| if is_memory { format!("{} MiB", value >> 20) } else { value.to_string() };
        (format!("{name}: {} then {}", show(before), show(after)), flat)
    };
    readings.iter().map(verdict).collect()
}
