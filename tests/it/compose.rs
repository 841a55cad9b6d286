//! Tests the compose file: Docker Compose can read it, and the files that it names exist and are accepted by
//! the servers.

use std::path::Path;
use std::process::Command;

use event_client::message::Durability;
use serde_json::Value;
use test_servers::{Generation, Rabbit, Redis};

/// Returns the compose file as Docker Compose resolves it, with these variables.
fn config(variables: &[(&str, &str)]) -> Value {
    let program = Generation::New.program("docker-compose", "docker-compose").expect("Docker Compose");
    let file = root().join("docker-compose.yml");
    let mut command = Command::new(program);
    for unset in ["EVENT_BUS_URL", "LOG_LEVEL", "LOGTHON_ALLOWED_HOSTS"] {
        command.env_remove(unset);
    }
    command.arg("--file").arg(file).args(["config", "--format", "json"]).envs(variables.iter().copied());
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "it warns");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository")
}

fn services(config: &Value) -> impl Iterator<Item = (&String, &Value)> {
    config["services"].as_object().expect("services").iter()
}

/// Checks the file without variables, and with each broker that the comment at its start names.
#[test]
fn docker_compose_accepts_it() {
    assert_eq!(config(&[])["services"]["backbone"]["environment"]["EVENT_BUS_URL"], Value::Null);
    let head = std::fs::read_to_string(root().join("docker-compose.yml")).expect("readable");
    let urls: Vec<_> = head.lines().filter_map(|line| line.split_once("EVENT_BUS_URL=")).collect();
    assert_eq!(urls.len(), 3, "{urls:?}");
    for (_, rest) in urls {
        let url = rest.split(' ').next().expect("a URL");
        let config = config(&[("EVENT_BUS_URL", url)]);
        assert_eq!(config["services"]["backbone"]["environment"]["EVENT_BUS_URL"], url);
        let host = url.parse::<event_client::url::BusUrl>().expect("a URL of the bus").to_string();
        let service = services(&config).find(|(name, _)| host.contains(&format!("{name}:")));
        let (_, service) = service.unwrap_or_else(|| panic!("no service is the host of {url}"));
        assert!(service.get("healthcheck").is_some(), "{url} may be opened before its server is ready");
    }
}

/// Ports are published to this machine only, each service has a health check, and mounted files exist.
#[test]
fn nothing_is_open_to_others_and_nothing_is_missing() {
    let config = config(&[]);
    for (name, service) in services(&config) {
        assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
        for port in service["ports"].as_array().into_iter().flatten() {
            assert_eq!(port["host_ip"], "127.0.0.1", "{name} publishes {port}");
        }
        for volume in service["volumes"].as_array().into_iter().flatten() {
            if volume["type"] == "bind" {
                let source = volume["source"].as_str().expect("a path");
                assert!(Path::new(source).is_file(), "{name} mounts {source}");
                assert_eq!(volume["read_only"], true, "{name} could change {source}");
            }
        }
        if let Some(build) = service.get("build") {
            let file = build["dockerfile"].as_str().expect("a file");
            assert!(root().join(file).is_file(), "{name} is built from {file}");
        }
    }
}

/// The servers accept the mounted files, and their settings take effect.
#[tokio::test]
async fn the_mounted_configurations_are_valid() {
    let lines = |name: &str| {
        let text = std::fs::read_to_string(root().join("ops/brokers").join(name)).expect("readable");
        let of_the_container = ["dir ", "listeners."];
        let kept = text.lines().filter(move |line| !of_the_container.iter().any(|own| line.starts_with(own)));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    let nats = Generation::New.program("nats-server", "nats-server").expect("the server");
    let file = root().join("ops/brokers/nats.conf");
    let output = Command::new(nats).arg("-t").arg("-c").arg(file).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let redis = lines("redis.conf")
        .iter()
        .fold(Redis::options().generation(Generation::New), |options, line| options.line(line));
    let redis = redis.start().await.expect("Redis starts");
    let rabbit = lines("rabbitmq.conf")
        .iter()
        .fold(Rabbit::options().generation(Generation::New), |options, line| options.line(line));
    let rabbit = rabbit.start().await.expect("RabbitMQ starts");
    for url in [redis.url(), rabbit.url()] {
        let bus = event_client::transport::open(url.parse().expect("a URL")).await.expect("opened");
        assert_eq!(bus.capabilities().durability, Durability::Fsync, "{}", bus.capabilities().name);
    }
}
