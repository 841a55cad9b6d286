//! Compares expected with observed counts, row by row.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use reference_systems::Expected;
use serde::Serialize;

use super::counts::Now;
use terminal::Output;

/// One compared count.
#[derive(Clone, Debug, Serialize)]
struct Row {
    what: &'static str,
    name: String,
    expected: u64,
    observed: u64,
}

/// All compared counts of one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(expected: &Expected, now: &Now) -> Self {
        let mut report = Self::default();
        report.compare("events published", &expected.published, &now.published);
        report.compare("events handled", &expected.handled, &now.handled);
        report.compare("retries", &expected.retried, &now.retried);
        report.compare("dead letters", &expected.dead, &now.dead);
        report.compare("tasks succeeded", &expected.tasks, &now.tasks);
        report.row("tasks unfinished", "all", 0, now.unfinished);
        // Every firing must have led to one task, and every schedule must have fired.
        report.compare("schedules fired", &now.fired, &now.scheduled);
        report.row(
            "schedules silent",
            "all",
            0,
            now.fired.values().filter(|fired| **fired == 0).count() as u64,
        );
        // Records posted over HTTP and shipped over the bus are stored under the same names; the aggregator also logs
        // its own start, which does not count.
        let mut posted = expected.posted.clone();
        posted.insert(SHIPPED.into(), now.shipped);
        let mut stored = now.logs.clone();
        stored.remove("logthon");
        report.compare("log records stored", &posted, &stored);
        report.row("log records shed", "all", 0, now.shed);
        report
    }

    fn compare(
        &mut self,
        what: &'static str,
        expected: &BTreeMap<String, u64>,
        observed: &BTreeMap<String, u64>,
    ) {
        let names: BTreeSet<_> = expected.keys().chain(observed.keys()).collect();
        let count = |map: &BTreeMap<String, u64>, name: &String| map.get(name).copied().unwrap_or_default();
        for name in names {
            self.row(what, name, count(expected, name), count(observed, name));
        }
    }

    fn row(&mut self, what: &'static str, name: &str, expected: u64, observed: u64) {
        self.rows.push(Row { what, name: name.to_owned(), expected, observed });
    }

    /// Returns whether every observed count equals the expected one.
    pub(super) fn adds_up(&self) -> bool {
        self.rows.iter().all(|row| row.expected == row.observed)
    }

    pub(super) fn print(&self, output: Output, took: Duration) -> anyhow::Result<()> {
        let seconds = took.as_secs_f64();
        if output.is_json() {
            let line =
                serde_json::json!({"adds_up": self.adds_up(), "seconds": seconds, "counts": self.rows});
            return Ok(output.json(&line)?);
        }
        let cells = |row: &Row| {
            let verdict = if row.expected == row.observed { "ok" } else { "DIFFERS" };
            [
                row.what.into(),
                row.name.clone(),
                row.expected.to_string(),
                row.observed.to_string(),
                verdict.into(),
            ]
            .to_vec()
        };
        output.line("")?;
        output.table(
            &["COUNT", "OF", "EXPECTED", "OBSERVED", ""],
            &self.rows.iter().map(cells).collect::<Vec<_>>(),
        )?;
        let verdict = if self.adds_up() { "all counts match" } else { "not all counts match" };
        Ok(output.line(&format!("\n{} after {seconds:.1} s", output.verdict(self.adds_up(), verdict)))?)
    }
}

/// The service name under which this process ships its own log.
pub(super) const SHIPPED: &str = "backbone";
