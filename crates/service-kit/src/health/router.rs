//! The routes of the health checks, and their JSON responses.

use super::{Dependency, Health, State};
use axum::extract::State as Shared;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::sync::PoisonError;

impl Health {
    /// Returns the routes, to merge into the router of the process.
    pub fn router(&self) -> Router {
        let live = Router::new()
            .route("/health", get(live))
            .route("/api/health", get(live))
            .route("/api/health/", get(live));
        live.with_state(self.clone()).merge(self.probes())
    }

    /// Returns only `/health/detailed`, `/ready` and `/metrics`, for a process whose `/health` is defined elsewhere.
    pub fn probes(&self) -> Router {
        let routes = Router::new().route("/health/detailed", get(detailed)).route("/ready", get(ready));
        let routes = match &self.metrics {
            Some(metrics) => {
                let metrics = metrics.clone();
                let text = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
                routes.route("/metrics", get(move || async move { (text, metrics.render()) }))
            }
            None => routes,
        };
        routes.with_state(self.clone())
    }

    /// Returns the fields that every response begins with.
    fn head(&self, status: &str) -> Map<String, Value> {
        let mut head = Map::new();
        head.insert("status".into(), status.into());
        head.insert("service".into(), (*self.service).into());
        head.insert("timestamp".into(), Timestamp::now().to_string().into());
        head.insert("version".into(), (*self.version).into());
        head
    }
}

async fn live(Shared(health): Shared<Health>) -> Json<Value> {
    let mut answer = health.head("healthy");
    let fields = health.fields.read().unwrap_or_else(PoisonError::into_inner).clone();
    for (name, value) in fields {
        answer.insert(name, value());
    }
    Json(answer.into())
}

async fn detailed(Shared(health): Shared<Health>) -> Response {
    let dependencies = health.dependencies().await;
    let (status, code) = match worst(&dependencies) {
        None => ("healthy", StatusCode::OK),
        Some(false) => ("degraded", StatusCode::OK),
        Some(true) => ("unhealthy", StatusCode::SERVICE_UNAVAILABLE),
    };
    let mut answer = health.head(status);
    let ok = |dependency: &Dependency| dependency.state == State::Connected;
    let checks =
        dependencies.iter().map(|one| format!("{}_{}", one.name, if ok(one) { "ok" } else { "failed" }));
    answer.insert("checks".into(), checks.collect());
    answer.insert(
        "dependencies".into(),
        dependencies.iter().map(|one| (one.name.clone(), json!(one))).collect(),
    );
    (code, Json(answer)).into_response()
}

async fn ready(Shared(health): Shared<Health>) -> Response {
    let stopping = health.shutdown.as_ref().is_some_and(|shutdown| shutdown.is_asked());
    let mut reasons = Vec::new();
    if stopping {
        reasons.push("stopping".to_owned());
    } else {
        let dependencies = health.dependencies().await;
        let missing = dependencies.into_iter().filter(|one| one.required && one.state != State::Connected);
        reasons.extend(missing.map(|one| format!("{}: {}", one.name, one.error.unwrap_or_default())));
    }
    let (status, code) = match reasons.is_empty() {
        true => ("ready", StatusCode::OK),
        false => ("not_ready", StatusCode::SERVICE_UNAVAILABLE),
    };
    let mut answer = health.head(status);
    answer.insert("reasons".into(), json!(reasons));
    (code, Json(answer)).into_response()
}

/// Returns `None` when every dependency is available, else whether a required one is not.
fn worst(dependencies: &[Dependency]) -> Option<bool> {
    dependencies.iter().filter(|one| one.state != State::Connected).map(|one| one.required).max()
}
