//! Tests `backbone up`: Logthon's API on one port, durable, drained on a signal, and not blocked by a
//! connected viewer.

use std::time::Duration;

use backbone_tests::{Cli, Process, Signal, eventually, free_port};
use serde_json::{Value, json};

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Up {
    pub(crate) process: Process,
    pub(crate) base: String,
}

/// Starts `backbone up` with this data directory.
pub(crate) async fn up(cli: &Cli, data: &std::path::Path) -> Up {
    let port = free_port().to_string();
    let data = data.to_str().expect("a temporary folder is UTF-8");
    let mut command = cli.command(&["up", "--data-dir", data, "--port", &port]);
    command.env_remove("EVENT_BUS_URL");
    let mut process = Process::start(command);
    process.line(DEADLINE, "log viewer").await;
    Up { process, base: format!("http://127.0.0.1:{port}") }
}

async fn logs(base: &str) -> Vec<Value> {
    let answer: Value = reqwest::get(format!("{base}/logs?limit=0")).await.unwrap().json().await.unwrap();
    answer["logs"].as_array().unwrap().clone()
}

#[tokio::test]
async fn an_acknowledged_log_survives_a_kill_right_after_its_answer() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut first = up(&cli, folder.path()).await;
    let client = reqwest::Client::new();
    let posts = reference_systems::edge_terrarium::recorded().unwrap();
    for post in &posts {
        let request = client.post(format!("{}{}", first.base, post.path)).body(post.body.clone());
        let answer = request.header("content-type", &post.content_type).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{post:?}");
    }
    first.process.kill().await;

    let second = up(&cli, folder.path()).await;
    let stored = logs(&second.base).await;
    for post in posts.iter().filter(|post| post.valid_json) {
        let sent: Value = serde_json::from_str(&post.body).unwrap();
        let same = |log: &&Value| {
            ["service", "message"].iter().all(|field| log[*field] == sent[*field])
                && sent["metadata"]
                    .as_object()
                    .is_none_or(|fields| fields.iter().all(|(name, value)| log["metadata"][name] == *value))
        };
        assert!(stored.iter().any(|log| same(&log)), "{sent} is not among the stored logs");
    }
    let from_clients =
        stored.iter().filter(|log| posts.iter().any(|post| log["service"] == post.service())).count();
    assert_eq!(from_clients, posts.len(), "every post is stored once, the broken ones repaired");
}

#[tokio::test]
async fn it_is_ready_says_so_and_drains_on_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let mut up = up(&cli, folder.path()).await;
    let get = async |path: &str| reqwest::get(format!("{}{path}", up.base)).await.unwrap();
    let health: Value = get("/health").await.json().await.unwrap();
    assert_eq!((&health["status"], &health["service"]), (&json!("healthy"), &json!("logthon")));
    let detailed = get("/health/detailed").await;
    assert_eq!(detailed.status(), 200);
    let detailed: Value = detailed.json().await.unwrap();
    assert!(detailed["dependencies"].to_string().contains("bus"), "{detailed}");
    assert_eq!(get("/ready").await.status(), 200);
    let member = r#"messaging_group_members{messaging_consumer_group_name="log-aggregator"} 1"#;
    let metrics = format!("{}/metrics", up.base);
    eventually(DEADLINE, "the lag of the groups among the metrics", async || {
        reqwest::get(&metrics).await.unwrap().text().await.unwrap().contains(member)
    })
    .await;
    assert!(get("/").await.text().await.unwrap().to_lowercase().contains("<!doctype html"));
    up.process.signal(Signal::TERM);
    assert!(up.process.exit(DEADLINE).await.success(), "{}", up.process.output());
}

#[tokio::test]
async fn tasks_run_on_the_worker_that_is_up_and_logs_are_found_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let up = up(&cli, folder.path()).await;
    let called = cli
        .json(&["task", "call", "backbone.publish_event", "-a", r#"["orders.placed.v1", {"order_id": 7}]"#])
        .await;
    let id = called[0]["id"].as_str().unwrap().to_owned();
    let event = cli.json(&["tail", "orders.>", "--since", "1h", "--limit", "1"]).await;
    assert_eq!(event[0]["data"], json!({"order_id": 7}));
    let result = cli.json(&["task", "result", &id]).await;
    assert_eq!(result[0]["state"], "succeeded", "{result:?}");

    // Tasks without a worker yet: they wait unchanged, and the doctor names the task type that lacks a
    // worker.
    let said = cli.run(&["--json", "task", "call", "shop.restock", "-a", "[7]"]).await;
    assert!(said.ok && said.err.contains("no worker has registered `shop.restock`"), "{said:?}");
    let stranger: Value = serde_json::from_str(said.out.trim()).unwrap();
    let echoed = cli.json(&["task", "call", "backbone.echo", "-a", "[18446744073709551616]"]).await;
    let echoed = echoed[0]["id"].as_str().unwrap();
    let echoed = cli.run(&["task", "result", echoed, "--timeout", "30s"]).await;
    assert_eq!(echoed.out.trim(), "18446744073709551616", "more digits than a machine word holds");
    let left = cli.json(&["task", "inspect", "query-task", stranger["id"].as_str().unwrap()]).await;
    assert_eq!((&left[0]["state"], &left[0]["fence"]), (&json!("queued"), &json!(0)));
    let said = cli.run(&["doctor", "--json"]).await;
    let tasks = said.out.lines().find(|line| line.contains(r#""check":"tasks""#)).unwrap();
    assert!(!said.ok && tasks.contains("no live worker takes `shop.restock`"), "{tasks}");
    let queues = cli.json(&["task", "inspect", "stats"]).await;
    assert!(queues.iter().any(|queue| queue["queue"] == "backbone"), "{queues:?}");

    let body = json!({"service": "shop", "level": "ERROR", "message": "no tea left"});
    let post = reqwest::Client::new().post(format!("{}/api/logs", up.base)).json(&body).send().await.unwrap();
    assert_eq!(post.status(), 200);
    let found = cli.json(&["logs", "query", "tea", "--level", "warn", "--server", &up.base]).await;
    assert_eq!(found[0]["service"], "shop");
}

#[tokio::test]
async fn the_tail_on_the_command_line_follows_what_is_stored() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let up = up(&cli, folder.path()).await;
    let log = async |level: &str, message: &str| {
        let body = json!({"service": "shop", "level": level, "message": message});
        let post = reqwest::Client::new().post(format!("{}/api/logs", up.base)).json(&body);
        assert_eq!(post.send().await.unwrap().status(), 200);
    };
    log("ERROR", "before").await;
    let command =
        cli.command(&["logs", "tail", "--level", "warn", "--service", "shop", "--server", &up.base]);
    let mut tail = Process::start(command);
    tail.line(DEADLINE, "before").await;
    log("INFO", "not this one").await;
    log("WARN", "and\u{1b}[31m after").await;
    let line = tail.line(DEADLINE, "after").await;
    assert!(!line.contains('\u{1b}') && line.contains("shop"), "{line:?}");
    assert!(!tail.output().contains("not this one"), "{}", tail.output());
    tail.signal(Signal::INT);
    assert!(tail.exit(DEADLINE).await.success(), "{}", tail.output());
}

#[tokio::test]
async fn settings_come_from_a_file_and_from_variables_and_an_unknown_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let file = folder.path().join("backbone.toml");
    let data = folder.path().join("data");
    std::fs::write(&file, format!("data_dir = {data:?}\n[logs]\ninitial_logs = 3\n")).unwrap();
    let port = free_port().to_string();
    let command = |variable: &str| {
        let mut command = cli.command(&["up"]);
        command.env_remove("EVENT_BUS_URL").env_remove("BACKBONE_DATA_DIR");
        command.env("BACKBONE__CONFIG", &file).env(variable, &port);
        command
    };
    let mut process = Process::start(command("BACKBONE__HTTP__PORT"));
    process.line(DEADLINE, &format!("127.0.0.1:{port}/")).await;
    assert!(data.join("bus.db").exists());
    process.signal(Signal::TERM);
    assert!(process.exit(DEADLINE).await.success(), "{}", process.output());

    let refused = command("BACKBONE__HTTP__PROT").output().await.unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    let text = "http.prot: unknown key; did you mean \"port\"? (from the variable BACKBONE__HTTP__PROT)";
    assert!(!refused.status.success() && said.contains(text), "{said}");
}

#[tokio::test]
async fn a_port_in_use_is_named_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let cli = Cli::new(folder.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let said = cli.run(&["up", "--data-dir", folder.path().to_str().unwrap(), "--port", &port]).await;
    assert!(!said.ok && said.err.contains(&port), "{said:?}");
}
