//! Tests that the servers of docker-compose.yml accept the configurations under `ops/brokers/`, and that
//! their settings take effect.

use std::path::Path;
use test_servers::{Generation, Nats, Rabbit, Redis};

/// Returns a file's lines without those that only apply to a container.
fn lines(file: &str, without: &[&str]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ops/brokers").join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let kept = text.lines().filter(|line| !without.iter().any(|name| line.trim_start().starts_with(name)));
    kept.map(|line| format!("{line}\n")).collect()
}

#[tokio::test]
async fn nats_syncs_before_it_confirms() {
    let text = lines("nats.conf", &["server_name", "port", "http_port", "store_dir"]);
    assert!(text.contains("sync_interval: always"));
    let options = Nats::options().generation(Generation::New).without_jetstream();
    let folder = std::env::temp_dir().join(format!("backbone-configuration-{}", std::process::id()));
    let text = text.replace("jetstream {", &format!("jetstream {{ store_dir: {folder:?}"));
    let server = options.line(&text).start().await.unwrap();
    assert_eq!(crate::nats::stream(&server.url()).await.query_account().await.unwrap().streams, 1);
    drop(server);
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn redis_syncs_and_evicts_nothing() {
    let text = lines("redis.conf", &["dir"]);
    let options = Redis::options().generation(Generation::New).without_persistence();
    let server = options.line(&text).start().await.unwrap();
    crate::redis::add(&server.url()).await.unwrap();
    server.kill().await.unwrap();
    server.start().await.unwrap();
    assert_eq!(crate::redis::length(&server.url()).await, 1);
}

#[tokio::test]
async fn rabbitmq_knows_each_line() {
    let text = lines("rabbitmq.conf", &["listeners"]);
    let server = Rabbit::options().generation(Generation::New).line(&text).start().await.unwrap();
    let timeout = server.eval("application:get_env(rabbit, consumer_timeout)").await.unwrap();
    assert_eq!(timeout, "{ok,3600000}");
}
