//! Test support: an aggregator in this process, and the fixtures.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log_aggregator::{Aggregator, Config};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response};
use serde_json::Value;
use service_kit::shutdown::{Parts, Report, Shutdown};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// An aggregator in this process, with its own port and its own directory.
pub(crate) struct Served {
    pub(crate) aggregator: Arc<Aggregator>,
    pub(crate) at: Door,
    pub(crate) shutdown: Shutdown,
    server: JoinHandle<Report>,
    _dir: TempDir,
}

impl Served {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut config = Config::new(dir.path().join("logs"));
        config.announce = false;
        config.http.port = 0;
        change(&mut config);
        let listener = service_kit::http::bind(&config.http).await.expect("a port");
        let at = Door::to(listener.local_addr().expect("an address"));
        let aggregator = Arc::new(Aggregator::open(config).await.expect("the aggregator opens"));
        let shutdown = Shutdown::new();
        let mut parts = Parts::new(shutdown.clone(), Default::default());
        let (serving, router) = (Arc::clone(&aggregator), aggregator.router());
        parts.add("http", |stop| async move { serving.serve(listener, router, stop).await });
        Self { aggregator, at, shutdown, server: tokio::spawn(parts.run()), _dir: dir }
    }

    /// Requests the server to stop, and returns when it has stopped.
    pub(crate) async fn stop(&mut self) -> Report {
        self.shutdown.ask("the test says so");
        (&mut self.server).await.expect("it ends")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The HTTP address of an aggregator, and a client for it.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) address: SocketAddr,
    pub(crate) client: Client,
}

impl Door {
    fn to(address: SocketAddr) -> Self {
        let client = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client");
        Self { address, client }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.expect("an answer")
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        response.json().await.expect("JSON")
    }

    pub(crate) async fn post_to(&self, path: &str, body: impl Into<Vec<u8>>) -> Response {
        let request = self.client.post(self.url(path)).header(CONTENT_TYPE, "application/json");
        request.body(body.into()).send().await.expect("an answer")
    }

    pub(crate) async fn post(&self, body: impl Into<Vec<u8>>) -> Response {
        self.post_to("/logs", body).await
    }

    /// Posts a record that has to be accepted.
    pub(crate) async fn log(&self, service: &str, level: &str, message: &str) {
        let body = serde_json::json!({ "service": service, "level": level, "message": message });
        assert_eq!(self.post(body.to_string()).await.status(), 200);
    }

    /// Returns all records, in Logthon's format.
    pub(crate) async fn entries(&self) -> Vec<Value> {
        let all = self.json("/logs?limit=0").await;
        let entries = all["logs"].as_array().expect("a list").clone();
        assert_eq!(all["count"], entries.len(), "the count is the list's");
        entries
    }
}

/// Returns the lines of a fixture as JSON.
pub(crate) fn fixture(name: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}
