//! The tasks and log records of the stored data, as `backbone up` writes them into its data directory.

use std::path::Path;
use std::time::Duration;

use backbone_tests::{Cli, eventually};
use serde_json::{Value, json};

use crate::up::{DEADLINE, Up, up};

/// Starts `backbone up` on the files of `folder`.
async fn start(folder: &Path) -> (Cli, Up) {
    let cli = Cli::at(&format!("sqlite:{}/bus.db", folder.display()));
    let up = up(&cli, folder).await;
    (cli, up)
}

async fn log(up: &Up, level: &str, message: &str) {
    let body = json!({"service": "shop", "level": level, "message": message, "trace_id": "t1", "metadata": {"order": 7}});
    let post = reqwest::Client::new().post(format!("{}/api/logs", up.base)).json(&body);
    assert_eq!(post.send().await.unwrap().status(), 200);
}

async fn call(cli: &Cli, arguments: &[&str]) -> String {
    let mut all = vec!["task", "call"];
    all.extend(arguments);
    cli.json(&all).await[0]["id"].as_str().unwrap().to_owned()
}

async fn state(cli: &Cli, id: &str) -> Value {
    cli.json(&["task", "inspect", "query-task", id]).await[0]["state"].clone()
}

/// Stores a task in each state that lasts, a schedule, and three log records; the ids of the tasks are in `ids.json`.
pub(super) async fn record(folder: &Path) {
    let (cli, mut up) = start(folder).await;
    let dead =
        call(&cli, &["backbone.publish_event", "-a", r#"["Not a subject", {}]"#, "--max-retries", "0"]).await;
    eventually(DEADLINE, "a dead task", async || state(&cli, &dead).await == "dead").await;
    let due = call(&cli, &["backbone.echo", "-a", "[3]", "--countdown", "5m"]).await;
    let waiting = call(&cli, &["shop.restock", "-a", "[7]", "--unique", "seven"]).await;
    let added =
        ["task", "schedule", "add", "nightly", "--cron", "0 2 * * *", "--task", "backbone.echo", "-a", "[1]"];
    let added = cli.run(&added).await;
    assert!(added.ok, "{added:?}");
    for (level, message) in [("INFO", "open"), ("ERROR", "no tea left"), ("DEBUG", "closed")] {
        log(&up, level, message).await;
    }
    up.process.signal(backbone_tests::Signal::TERM);
    assert!(up.process.exit(DEADLINE).await.success());
    let ids = json!({"dead": dead, "due": due, "waiting": waiting});
    std::fs::write(folder.join("ids.json"), ids.to_string()).unwrap();
}

/// Reads the recorded tasks and log records with `backbone up`: waiting tasks run, the dead one is replayed.
pub(super) async fn read(folder: &Path) {
    let ids: Value = serde_json::from_slice(&std::fs::read(folder.join("ids.json")).unwrap()).unwrap();
    let id = |name: &str| ids[name].as_str().unwrap().to_owned();
    let (cli, up) = start(folder).await;
    eventually(DEADLINE, "the delayed task to run", async || state(&cli, &id("due")).await == "succeeded")
        .await;
    assert_eq!(cli.json(&["task", "result", &id("due")]).await[0]["result"], 3);
    let waiting = cli.json(&["task", "inspect", "query-task", &id("waiting")]).await;
    assert_eq!((&waiting[0]["name"], &waiting[0]["args"]), (&json!("shop.restock"), &json!([7])));
    let dead = cli.json(&["task", "dead", "ls"]).await;
    // The waiting task is dead as well once no worker has registered it for a week.
    assert!(dead.iter().any(|task| task["id"] == ids["dead"]), "{dead:?}");
    assert!(cli.run(&["task", "dead", "replay", &id("dead")]).await.ok);
    eventually(DEADLINE, "the replayed task to fail again", async || {
        let task = &cli.json(&["task", "inspect", "query-task", &id("dead")]).await[0];
        task["state"] == "dead" && task["attempts"].as_array().is_some_and(|attempts| attempts.len() == 2)
    })
    .await;
    let schedules = cli.json(&["task", "schedule", "ls"]).await;
    assert!(schedules.iter().any(|schedule| schedule["name"] == "nightly"), "{schedules:?}");

    let query = async |text: &str| {
        cli.json(&["logs", "query", text, "--service", "shop", "--server", &up.base]).await
    };
    let found = query("tea").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((&found[0]["level"], &found[0]["message"]), (&json!("ERROR"), &json!("no tea left")));
    log(&up, "INFO", "open again").await;
    eventually(Duration::from_secs(30), "the earlier records and the new one", async || {
        query("open").await.len() == 2
    })
    .await;
}
