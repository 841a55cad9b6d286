//! `backbone demo --once`: every count must add up, and the program must say so by its status.

use backbone_tests::Cli;

#[tokio::test]
async fn every_count_of_the_demonstration_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut command = cli.command(&["demo", "--once", "--json"]);
    command.env_remove("EVENT_BUS_URL").env_remove("RUST_LOG").kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), command.output()).await;
    let output = output.expect("it stops by itself").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| {
            panic!("{error}; it wrote:\n{text}\n{}", String::from_utf8_lossy(&output.stderr))
        });
    let differs: Vec<_> = report["counts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["expected"] != row["observed"])
        .collect();
    assert!(
        output.status.success() && report["adds_up"] == true,
        "{differs:#?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The report covers what the demonstration promises.
    for what in [
        "events published",
        "events handled",
        "retries",
        "dead letters",
        "tasks succeeded",
        "schedules fired",
        "log records stored",
    ] {
        let rows = report["counts"].as_array().unwrap().iter().filter(|row| row["what"] == what);
        assert!(rows.map(|row| row["observed"].as_u64().unwrap()).sum::<u64>() > 0, "no {what}");
    }
}
