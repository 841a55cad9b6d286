//! Answers requests of NATS' own tools to a service: `$SRV.PING`, `INFO` and `STATS`, as specified in ADR-32.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use serde_json::{Value, json};
use smol_str::SmolStr;

use super::api::nanos;
use super::client::Client;
use event_transport::Serve;
use event_transport::is_health;
use event_transport::subject::Subject;
use event_transport::sync::lock;

/// Services of this connection.
pub(super) struct Services {
    client: Arc<Client>,
    /// By their NATS name.
    known: Mutex<HashMap<String, Arc<Service>>>,
}

struct Service {
    name: String,
    version: String,
    id: String,
    started: Timestamp,
    endpoints: Mutex<Vec<Arc<Endpoint>>>,
}

/// One subject of a service, with statistics of its requests.
pub(super) struct Endpoint {
    name: String,
    subject: String,
    left: AtomicBool,
    requests: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
    last_error: Mutex<Option<SmolStr>>,
}

impl Endpoint {
    /// Counts a request that was answered.
    pub(super) fn count(&self, took: Duration, failed: Option<SmolStr>) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos(took), Ordering::Relaxed);
        if let Some(error) = failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
            *lock(&self.last_error) = Some(error);
        }
    }

    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    fn stats(&self) -> Value {
        let (requests, nanos) = (self.requests.load(Ordering::Relaxed), self.nanos.load(Ordering::Relaxed));
        json!({
            "name": self.name,
            "subject": self.subject,
            "queue_group": "q",
            "num_requests": requests,
            "num_errors": self.errors.load(Ordering::Relaxed),
            // Null instead of omitted: some clients require the fields.
            "last_error": lock(&self.last_error).as_deref(),
            "processing_time": nanos,
            "average_processing_time": nanos.checked_div(requests).unwrap_or(0),
            "data": null,
        })
    }

    fn info(&self) -> Value {
        json!({ "name": self.name, "subject": self.subject, "queue_group": "q", "metadata": {} })
    }
}

impl Service {
    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let mut endpoints = lock(&self.endpoints);
        endpoints.retain(|endpoint| !endpoint.left.load(Ordering::Acquire));
        endpoints.clone()
    }

    /// Returns the answer to `PING`, `INFO` or `STATS`; `None` when the service has no endpoint any more.
    fn answer(&self, verb: &str) -> Option<Value> {
        let endpoints = self.endpoints();
        if endpoints.is_empty() {
            return None;
        }
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase()),
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": {},
        });
        match verb {
            "INFO" => {
                answer["description"] = json!("");
                answer["endpoints"] = endpoints.iter().map(|endpoint| endpoint.info()).collect();
            }
            "STATS" => {
                // Three digits of a second: some clients read at most six digits, and every client reads some.
                answer["started"] = json!(self.started.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string());
                answer["endpoints"] = endpoints.iter().map(|endpoint| endpoint.stats()).collect();
            }
            _ => {}
        }
        Some(answer)
    }
}

/// Converts a name to the characters that NATS allows.
fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '-') { c } else { '-' }).collect()
}

impl Services {
    pub(super) fn new(client: &Arc<Client>) -> Self {
        Self { client: client.clone(), known: Mutex::default() }
    }

    /// Adds a subject to a service, and answers `$SRV` requests for it from then on. The health subject is not an
    /// endpoint.
    pub(super) async fn enlist(&self, spec: &Serve, subject: &Subject) -> Arc<Endpoint> {
        let endpoint = Arc::new(Endpoint {
            name: plain(subject.as_str()),
            subject: self.client.names.request(subject),
            left: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanos: AtomicU64::new(0),
            last_error: Mutex::default(),
        });
        if !self.client.config.service_discovery || is_health(subject) {
            return endpoint;
        }
        let name = plain(&spec.service);
        let (service, is_new) = {
            let mut services = lock(&self.known);
            let known = services.len();
            let service = services.entry(name.clone()).or_insert_with(|| {
                Arc::new(Service {
                    id: uuid::Uuid::now_v7().simple().to_string(),
                    name,
                    version: spec.version.as_deref().unwrap_or("0.0.0").to_owned(),
                    started: Timestamp::now(),
                    endpoints: Mutex::default(),
                })
            });
            let service = service.clone();
            (service, services.len() > known)
        };
        lock(&service.endpoints).push(endpoint.clone());
        if is_new {
            self.answer_for(&service).await;
        }
        endpoint
    }

    async fn answer_for(&self, service: &Arc<Service>) {
        for verb in ["PING", "INFO", "STATS"] {
            for of in
                [String::new(), format!(".{}", service.name), format!(".{}.{}", service.name, service.id)]
            {
                // On a server that denies this subscription the service works, but NATS' tools do not find it.
                let Ok(mut questions) = self.client.subscribe(format!("$SRV.{verb}{of}")).await else {
                    continue;
                };
                let (service, outbound, closed) =
                    (service.clone(), self.client.outbound.clone(), self.client.closed.clone());
                self.client.vital("nats service questions", async move {
                    loop {
                        let question = tokio::select! {
                            question = questions.next() => question,
                            () = closed.cancelled() => None,
                        };
                        let Some(question) = question else { return };
                        if let (Some(reply), Some(answer)) = (question.reply, service.answer(verb)) {
                            outbound.send_bare(reply, None, answer.to_string().into());
                        }
                    }
                });
            }
        }
    }
}
