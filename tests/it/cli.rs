//! Tests the command line on a bus that other processes use at the same time.

use std::time::Duration;

use backbone_tests::{Cli, Process, eventually};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_event_goes_from_one_process_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut subscriber = Process::start(cli.command(&["sub", "orders.>", "--group", "audit"]));
    subscriber.line(DEADLINE, "receiving orders.>").await;
    let stored = cli
        .json(&["pub", "orders.placed.v1", r#"{"order_id": 7}"#, "--key", "7", "--header", "tenant=acme"])
        .await;
    assert_eq!(stored[0]["duplicate"], false);
    let line = subscriber.line(DEADLINE, "orders.placed.v1").await;
    assert!(line.contains(r#"{"order_id":7}"#), "{line}");
    subscriber.signal(backbone_tests::Signal::TERM);
    assert!(subscriber.exit(DEADLINE).await.success());

    // Acknowledged messages are not delivered again; messages published meanwhile wait for the group.
    cli.json(&["pub", "orders.placed.v1", r#"{"order_id": 8}"#]).await;
    let lag = cli.json(&["lag", "audit"]).await;
    assert_eq!((&lag[0]["waiting"], &lag[0]["in_flight"]), (&json!(1), &json!(0)));
    let taken = cli.json(&["sub", "orders.>", "--group", "audit", "--limit", "1"]).await;
    assert_eq!(taken[0]["data"], json!({"order_id": 8}));
    assert_eq!(cli.json(&["lag", "audit"]).await[0]["waiting"], 0);
}

#[tokio::test]
async fn an_empty_bus_variable_counts_as_unset_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    for arguments in
        [&["pub", "orders.placed.v1", "{}"][..], &["lag"], &["doctor"], &["task", "inspect", "active"]]
    {
        let mut command = cli.command(arguments);
        let output =
            command.env("EVENT_BUS_URL", "").env_remove("CELERY_BROKER_URL").current_dir(folder.path());
        let output = output.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    assert!(folder.path().join("backbone-data/bus.db").is_file(), "the default bus was used");
}

#[tokio::test]
async fn numbers_keep_their_digits() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let data = r#"{"large": 340282366920938463463374607431768211456, "exact": 1.10, "text": "1 \" 2"}"#;
    let compact = r#"{"large":340282366920938463463374607431768211456,"exact":1.10,"text":"1 \" 2"}"#;
    cli.json(&["pub", "orders.placed.v1", data]).await;
    for arguments in
        [&["replay", "orders.>"][..], &["--json", "tail", "orders.>", "--since", "1h", "--limit", "1"]]
    {
        let said = cli.run(arguments).await;
        assert!(said.ok && said.out.contains(compact), "{arguments:?} printed: {}", said.out);
    }
    let packed = cli.run(&["pub", "orders.placed.v1", "--codec", "msgpack", data]).await;
    assert!(!packed.ok && packed.err.contains("340282366920938463463374607431768211456"), "{}", packed.err);
}

#[tokio::test]
async fn the_past_can_be_shown_and_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    for number in 0..3 {
        cli.json(&["pub", "orders.placed.v1", &format!(r#"{{"order_id": {number}}}"#)]).await;
    }
    let replayed = cli.json(&["replay", "orders.>"]).await;
    let ids: Vec<_> = replayed.iter().map(|line| line["data"]["order_id"].clone()).collect();
    assert_eq!(ids, [json!(0), json!(1), json!(2)]);
    let taken = cli.json(&["sub", "orders.>", "--group", "late", "--from", "earliest", "--limit", "3"]).await;
    assert_eq!(taken.len(), 3);
    cli.json(&["replay", "--group", "late", "--from", "earliest"]).await;
    let again = cli.json(&["sub", "orders.>", "--group", "late", "--limit", "3"]).await;
    assert_eq!(again.len(), 3);
    let tail = cli.json(&["tail", "orders.>", "--since", "1h", "--limit", "3"]).await;
    assert_eq!(tail[2]["data"]["order_id"], 2);
}

#[tokio::test]
async fn duplicates_and_schemas_and_the_doctor() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let publish = ["pub", "orders.placed.v1", "{}", "--id", "order-7", "--dedup"];
    assert_eq!(cli.json(&publish).await[0]["duplicate"], false);
    assert_eq!(cli.json(&publish).await[0]["duplicate"], true);

    let schemas = folder.path().join("schemas");
    let dir = schemas.to_str().unwrap();
    cli.json(&["schema", "gen", "--dir", dir]).await;
    assert!(cli.run(&["schema", "check", "--dir", dir]).await.ok);
    std::fs::write(schemas.join("envelope.v1.schema.json"), "{}").unwrap();
    let drift = cli.run(&["schema", "check", "--dir", dir]).await;
    assert!(!drift.ok && drift.out.contains("envelope.v1.schema.json"), "{drift:?}");

    let findings = cli.json(&["doctor"]).await;
    assert!(findings.iter().all(|finding| finding["ok"] == true), "{findings:?}");
}

#[tokio::test]
async fn a_topology_is_planned_and_applied_before_services_that_may_not_make_it() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    cli.json(&["pub", "orders.placed.v1", "{}"]).await;
    let url = format!("{}?provision=verify", cli.url());
    let refused = cli.run(&["--url", &url, "sub", "orders.>", "--group", "audit", "--limit", "1"]).await;
    assert!(!refused.ok && refused.err.contains("topology apply"), "{refused:?}");

    let file = folder.path().join("audit.json");
    let file = file.to_str().unwrap();
    std::fs::write(file, r#"{"groups": [{"group": "audit", "filters": ["orders.>"]}]}"#).unwrap();
    let planned = cli.run(&["topology", "plan", file]).await;
    assert!(!planned.ok && planned.out.contains("create group audit"), "{planned:?}");
    assert_eq!(cli.json(&["lag"]).await.len(), 0, "a plan makes nothing");
    let applied = cli.json(&["--url", &url, "topology", "apply", file]).await;
    assert_eq!((&applied[0]["object"], &applied[0]["action"]), (&json!("group audit"), &json!("create")));
    let planned = cli.run(&["topology", "plan", "--group", "audit", "--filter", "orders.>"]).await;
    assert!(planned.ok && planned.out.contains("no changes"), "{planned:?}");

    cli.json(&["pub", "orders.placed.v1", "{}"]).await;
    let taken = cli.json(&["--url", &url, "sub", "orders.>", "--group", "audit", "--limit", "1"]).await;
    assert_eq!(taken.len(), 1);
    // Deletion needs a confirmation: the flag `--yes`.
    let shown = cli.run(&["topology", "delete", "audit"]).await;
    assert!(!shown.ok && shown.err.contains("--yes") && shown.out.contains("would delete"), "{shown:?}");
    assert!(cli.run(&["topology", "delete", "audit", "nobody", "--yes"]).await.err.contains("nobody"));
    assert_eq!(cli.json(&["lag"]).await.len(), 1, "one unknown name deletes nothing");
    assert_eq!(cli.json(&["topology", "delete", "audit", "--yes"]).await[0]["deleted"], true);
    assert_eq!(cli.json(&["lag"]).await.len(), 0);
    for bad in [r#"{"groups": [{"group": "a b", "filters": ["x"]}]}"#, r#"{"group": 1}"#, "no"] {
        std::fs::write(file, bad).unwrap();
        assert!(!cli.run(&["topology", "plan", file]).await.ok, "{bad}");
    }
}

#[tokio::test]
async fn mistakes_are_answered_with_what_would_work() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    for (arguments, says) in [
        (&["pub", "Orders", "{}"][..], "orders.placed.v1"),
        (&["pub", "orders.placed.v1", "{not json"], "not JSON"),
        (&["lag", "nobody"], "backbone lag"),
        (&["dlq", "show", "nothing"], "backbone dlq ls"),
        (&["dlq", "drop"], "--all"),
        (&["sub", "orders.>", "--from", "noon"], "a duration ago"),
        (&["--url", "carrier-pigeon:x", "lag"], "sqlite:PATH"),
        (&["--url", "sqlite:/nowhere/at/all/bus.db", "lag"], "/nowhere/at/all"),
    ] {
        let said = cli.run(arguments).await;
        assert!(!said.ok, "{arguments:?} should fail");
        assert!(said.err.contains(says), "{arguments:?} printed: {}", said.err);
    }
}

#[tokio::test]
async fn a_consumer_that_was_killed_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut subscriber = Process::start(cli.command(&["sub", "orders.>", "--group", "audit"]));
    subscriber.line(DEADLINE, "receiving").await;
    subscriber.kill().await;
    cli.json(&["pub", "orders.placed.v1", r#"{"order_id": 1}"#]).await;
    eventually(DEADLINE, "the event to wait for the group", || async {
        cli.json(&["lag", "audit"]).await[0]["waiting"] == 1
    })
    .await;
    let taken = cli.json(&["sub", "orders.>", "--group", "audit", "--limit", "1"]).await;
    assert_eq!(taken[0]["data"]["order_id"], 1);
}

#[tokio::test]
async fn a_file_that_may_not_be_written_is_named_and_left_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    cli.json(&["pub", "orders.placed.v1", r#"{"order_id": 1}"#]).await;
    let file = folder.path().join("bus.db");
    let before = std::fs::read(&file).unwrap();
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&file, 0o444);
    mode(folder.path(), 0o555);
    let ours = cli.command(&["pub", "orders.placed.v1", r#"{"order_id": 2}"#]);
    // Permissions do not restrict root: in that case another user tries.
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = tokio::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(ours.as_std().get_program());
        command.args(ours.as_std().get_args()).env("EVENT_BUS_URL", cli.url());
        command
    } else {
        ours
    };
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    mode(folder.path(), 0o755);
    mode(&file, 0o600);
    assert!(!output.status.success() && said.contains("bus.db"), "{said}");
    assert!(
        said.contains("may not be written") || said.contains("rights") || said.contains("denied"),
        "{said}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(cli.json(&["replay", "orders.>"]).await.len(), 1);
}
