//! Test support: an aggregator with its page, in this process or in a separate process that can be killed.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use log_aggregator::{Aggregator, Config};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, Response};
use serde_json::Value;
use service_kit::shutdown::{Parts, Report, Shutdown};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// An aggregator with its page in this process, with its own port and its own directory.
pub(crate) struct Served {
    pub(crate) aggregator: Arc<Aggregator>,
    /// The routes that are served.
    pub(crate) router: Router,
    pub(crate) at: Door,
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
        let pages = console::Settings::of(&config);
        let listener = service_kit::http::bind(&config.http).await.expect("a port");
        let at = Door::to(listener.local_addr().expect("an address"));
        let aggregator = Arc::new(Aggregator::open(config).await.expect("the aggregator opens"));
        let router = console::mount(aggregator.router(), &pages);
        let mut parts = Parts::new(Shutdown::new(), Default::default());
        let (serving, routes) = (Arc::clone(&aggregator), router.clone());
        parts.add("http", |stop| async move { serving.serve(listener, routes, stop).await });
        Self { aggregator, router, at, server: tokio::spawn(parts.run()), _dir: dir }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// An aggregator in a separate process.
pub(crate) struct Process {
    child: Child,
    pub(crate) at: Door,
}

impl Process {
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_on(dir, 0)
    }

    /// Starts the process on the given port; 0 for any free port.
    pub(crate) fn start_on(dir: &Path, port: u16) -> Self {
        Self::launch(dir, port, None)
    }

    /// Starts a process that also consumes log batches from the bus at `url`.
    pub(crate) fn consuming(dir: &Path, url: &str) -> Self {
        Self::launch(dir, 0, Some(url))
    }

    fn launch(dir: &Path, port: u16, bus: Option<&str>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_log-aggregator"));
        match bus {
            Some(url) => command.env("EVENT_BUS_URL", url),
            None => command.env_remove("EVENT_BUS_URL"),
        };
        let mut child = command
            .arg(dir)
            .env("LOGTHON_PORT", port.to_string())
            .env("LOGTHON_RECONNECT_DELAY", "200")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it prints its address");
        let address = line.trim().strip_prefix("listening on http://").expect("an address").parse();
        Self { child, at: Door::to(address.expect("an address")) }
    }

    /// Returns the peak memory of the process, in bytes.
    pub(crate) fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib * 1024
    }

    /// Sends SIGKILL: no handler runs, and nothing is flushed.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Sends SIGTERM; returns whether the process exited with success.
    pub(crate) fn terminate(mut self) -> bool {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(kill.success());
        self.child.wait().expect("it ends").success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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

    pub(crate) async fn post(&self, body: impl Into<Vec<u8>>) -> Response {
        let request = self.client.post(self.url("/logs")).header(CONTENT_TYPE, "application/json");
        request.body(body.into()).send().await.expect("an answer")
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
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../log-aggregator/tests/data").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}
