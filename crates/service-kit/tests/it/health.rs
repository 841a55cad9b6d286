//! Tests every path of the health router, over a real listener.

use crate::client::{get, get_json};
use axum::Router;
use serde_json::json;
use service_kit::health::Health;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::Metrics;
use std::future::{pending, ready};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Barrier;

async fn served(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

fn health() -> Health {
    Health::new("billing", "1.2.3")
}

fn fine() -> impl Future<Output = Result<(), String>> + Send {
    ready(Ok(()))
}

fn refused() -> impl Future<Output = Result<(), String>> + Send {
    ready(Err("connection refused".to_owned()))
}

fn broken() -> Result<(), String> {
    panic!("a broken check")
}

#[tokio::test]
async fn health_says_who_it_is() {
    let health = health();
    health.field("log_counts", || json!({ "a": 1 }));
    let address = served(health.router()).await;
    for path in ["/health", "/api/health", "/api/health/"] {
        let (status, answer) = get_json(address, path).await;
        assert_eq!(status, 200);
        assert_eq!((&answer["status"], &answer["service"]), (&json!("healthy"), &json!("billing")));
        assert_eq!((&answer["version"], &answer["log_counts"]), (&json!("1.2.3"), &json!({ "a": 1 })));
        answer["timestamp"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    }
}

#[tokio::test]
async fn detailed_names_each_dependency() {
    let health = health();
    health.check("bus", fine).optional("cache", fine);
    let address = served(health.router()).await;
    let (status, answer) = get_json(address, "/health/detailed").await;
    assert_eq!((status, &answer["status"]), (200, &json!("healthy")));
    assert_eq!(answer["checks"], json!(["bus_ok", "cache_ok"]));
    assert_eq!(answer["dependencies"]["bus"]["state"], "connected");
    assert_eq!(answer["dependencies"]["cache"]["required"], false);
    assert!(answer["dependencies"]["bus"]["latency_ms"].as_f64().unwrap() >= 0.0);
    assert!(answer["dependencies"]["bus"].get("error").is_none());
}

#[tokio::test]
async fn a_missing_optional_dependency_degrades_and_a_required_one_does_not_serve() {
    let health = health();
    let address = served(health.router()).await;
    // Checks may be added after the router is made: parts register them when they start.
    health.check("bus", fine).optional("cache", refused);
    let (status, answer) = get_json(address, "/health/detailed").await;
    assert_eq!((status, &answer["status"]), (200, &json!("degraded")));
    assert_eq!(answer["dependencies"]["cache"]["error"], "connection refused");
    assert_eq!(get_json(address, "/ready").await.0, 200);

    health.check("store", refused);
    let (status, answer) = get_json(address, "/health/detailed").await;
    assert_eq!((status, &answer["status"]), (503, &json!("unhealthy")));
    assert_eq!(answer["checks"], json!(["bus_ok", "cache_failed", "store_failed"]));
    assert_eq!(answer["dependencies"]["store"]["state"], "unavailable");
    let (status, answer) = get_json(address, "/ready").await;
    assert_eq!((status, &answer["status"]), (503, &json!("not_ready")));
    assert_eq!(answer["reasons"], json!(["store: connection refused"]));
    assert_eq!(get_json(address, "/health").await.0, 200, "the process itself lives");
}

#[tokio::test]
async fn checks_run_side_by_side() {
    let health = health().timeout(crate::DEADLINE);
    let all = Arc::new(Barrier::new(3));
    for name in ["a", "b", "c"] {
        let all = all.clone();
        // Each check waits for the other two: run one after the other they would never end.
        health.check(name, move || {
            let all = all.clone();
            async move {
                all.wait().await;
                Ok::<_, String>(())
            }
        });
    }
    let address = served(health.router()).await;
    assert_eq!(get_json(address, "/health/detailed").await.0, 200);
}

#[tokio::test]
async fn a_check_that_hangs_or_panics_counts_as_missing() {
    let health = health().timeout(Duration::from_millis(20));
    health.check("hangs", pending::<Result<(), String>>);
    health.check("panics", || async { broken() });
    let address = served(health.router()).await;
    let (status, answer) = get_json(address, "/health/detailed").await;
    assert_eq!(status, 503);
    assert_eq!(answer["dependencies"]["hangs"]["state"], "timeout");
    assert_eq!(answer["dependencies"]["hangs"]["error"], "no answer within 20ms");
    assert_eq!(answer["dependencies"]["panics"]["error"], "the check panicked");
}

#[tokio::test]
async fn a_stopping_process_is_alive_and_not_ready() {
    let shutdown = Shutdown::new();
    let address = served(health().watch(&shutdown).router()).await;
    assert_eq!(get_json(address, "/ready").await.0, 200);
    shutdown.ask("the test says so");
    let (status, answer) = get_json(address, "/ready").await;
    assert_eq!((status, &answer["reasons"]), (503, &json!(["stopping"])));
    assert_eq!(get_json(address, "/health").await.0, 200);
}

#[tokio::test]
async fn metrics_are_text_for_prometheus() {
    let metrics = Metrics::install().unwrap();
    metrics::counter!("kit_test_total", "kind" => "a").increment(3);
    metrics::histogram!("kit_test_duration").record(0.002);
    let again = Metrics::install().unwrap();
    let address = served(health().metrics(metrics).router()).await;
    let (status, head, body) = get(address, "/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("kit_test_total{kind=\"a\"} 3"), "{body}");
    assert!(body.contains("kit_test_duration_bucket{le=\"0.0025\"} 1"), "{body}");
    assert!(again.render().contains("kit_test_total"));
    assert_eq!(get(served(health().router()).await, "/metrics").await.0, 404);
}
