//! Tests `backbone demo --once`: every count must match, and the exit status must report it.

use backbone_tests::Cli;
use serde_json::Value;
use tokio::process::Command;

/// Runs a demonstration, which must succeed with every count as expected; returns its report.
pub(crate) async fn report(mut command: Command) -> Value {
    command.env_remove("RUST_LOG").kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), command.output()).await;
    let output = output.expect("it stops by itself").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value =
        serde_json::from_str(text.lines().last().unwrap_or_default()).unwrap_or_else(|error| {
            panic!("{error}; it wrote:\n{text}\n{}", String::from_utf8_lossy(&output.stderr))
        });
    let differs: Vec<_> = rows(&report).iter().filter(|row| row["expected"] != row["observed"]).collect();
    assert!(
        output.status.success() && report["adds_up"] == true,
        "{differs:#?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    report
}

fn rows(report: &Value) -> &[Value] {
    report["counts"].as_array().unwrap()
}

/// Returns the observed count of `what`.
pub(crate) fn count(report: &Value, what: &str) -> u64 {
    let rows = rows(report).iter().filter(|row| row["what"] == what);
    rows.map(|row| row["observed"].as_u64().unwrap()).sum()
}

#[tokio::test]
async fn every_count_of_the_demonstration_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Cli::new(folder.path()).command(&["demo", "--once", "--json"]);
    command.env_remove("EVENT_BUS_URL");
    let report = report(command).await;
    // The report covers everything that the demonstration promises.
    for what in [
        "events published",
        "events handled",
        "retries",
        "dead letters",
        "tasks succeeded",
        "schedules fired",
        "log records stored",
    ] {
        assert!(count(&report, what) > 0, "no {what}");
    }
}
