//! Tests the program on real brokers: the demonstration's counts equal those of the embedded default, and the
//! doctor reports a server's problems.

use backbone_tests::{Cli, Said};
use serde_json::Value;
use test_servers::{Generation, Nats, Rabbit, Redis};

use crate::demo;

/// Runs the demonstration and checks its counts, which are the same on every bus.
async fn demonstrate(url: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Cli::at(url).command(&["demo", "--once", "--json"]);
    command.current_dir(folder.path());
    let report = demo::report(command).await;
    let counts = ["events published", "events handled", "retries", "dead letters", "tasks succeeded"]
        .map(|what| demo::count(&report, what));
    assert_eq!(counts, [283, 423, 6, 3, 14]);
}

#[tokio::test]
async fn the_demonstration_adds_up_on_nats() {
    demonstrate(&Nats::shared(Generation::New).await.url()).await;
}

#[tokio::test]
async fn the_demonstration_adds_up_on_redis() {
    demonstrate(&Redis::shared(Generation::New).await.url()).await;
}

#[tokio::test]
async fn the_demonstration_adds_up_on_rabbitmq() {
    demonstrate(&Rabbit::shared(Generation::New).await.url()).await;
}

/// Returns the verdict and the text of one check.
fn finding(said: &Said, check: &str) -> (String, String) {
    let mut lines = said.out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let found = lines.find(|line| line["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no finding of {check} in {said:?}"));
    let text = |name: &str| found[name].as_str().unwrap().to_owned();
    (text("verdict"), text("text"))
}

#[tokio::test]
async fn the_doctor_looks_at_nats() {
    let said = Cli::at(&Nats::shared(Generation::Old).await.url()).run(&["doctor", "--json"]).await;
    assert!(said.ok, "{said:?}");
    let (verdict, text) = finding(&said, "version");
    assert!(verdict == "advice" && text.contains("2.10"), "{text}");
    assert_eq!(finding(&said, "clock").0, "good", "{said:?}");
    assert_eq!(finding(&said, "access").0, "advice", "{said:?}");
    let said = Cli::at(&Nats::shared(Generation::New).await.url()).run(&["doctor", "--json"]).await;
    assert_eq!(finding(&said, "version").0, "good", "{said:?}");
}

#[tokio::test]
async fn the_doctor_looks_at_redis() {
    let safe = Redis::options().fsync().start().await.unwrap();
    let said = Cli::at(&safe.url()).run(&["doctor", "--json"]).await;
    assert!(said.ok && finding(&said, "fsync").0 == "good", "{said:?}");
    assert_eq!(finding(&said, "clock").0, "good", "{said:?}");
    assert_eq!(finding(&said, "memory").0, "advice", "{said:?}");
    let forgetful = Redis::options().without_persistence().start().await.unwrap();
    let said = Cli::at(&forgetful.url()).run(&["doctor", "--json"]).await;
    let (verdict, text) = finding(&said, "fsync");
    assert!(!said.ok && verdict == "bad" && text.contains("appendonly yes"), "{said:?}");
}

#[tokio::test]
async fn the_doctor_looks_at_rabbitmq() {
    let said = Cli::at(&Rabbit::shared(Generation::New).await.url()).run(&["doctor", "--json"]).await;
    assert!(said.ok && finding(&said, "alarm").0 == "good", "{said:?}");
    assert_eq!(finding(&said, "access").0, "advice", "{said:?}");
    assert_eq!(finding(&said, "version").0, "good", "{said:?}");
}

#[tokio::test]
async fn the_doctor_says_that_nobody_is_there() {
    let port = backbone_tests::free_port();
    for scheme in ["nats", "redis", "amqp"] {
        let said = Cli::at(&format!("{scheme}://127.0.0.1:{port}")).run(&["doctor", "--json"]).await;
        assert!(!said.ok && finding(&said, "connect").0 == "bad", "{said:?}");
    }
}
