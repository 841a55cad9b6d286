//! Serves `/health`, `/storage/info` and `/websocket/info` in Logthon's format.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{App, logthon_entry};

/// Logthon's default for the number of records that it keeps of a service.
const MAX_SIZE: u64 = 1000;

pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    match app.store.counts().await {
        Ok(counts) => Json(json!({
            "status": "healthy",
            "service": "logthon",
            "timestamp": logthon_entry::local(Timestamp::now()),
            "connected_clients": connected(&app),
            "log_counts": counts,
        }))
        .into_response(),
        Err(error) => error.into_response(),
    }
}

pub(super) async fn storage(State(app): State<Arc<App>>) -> Response {
    let counts = match app.store.counts().await {
        Ok(counts) => counts,
        Err(error) => return error.into_response(),
    };
    let mut info = Map::new();
    for service in counts.keys().chain(app.config.max_logs.keys()) {
        let count = counts.get(service).copied().unwrap_or(0);
        let max = app.config.max_logs.get(service).copied().unwrap_or(MAX_SIZE);
        info.insert(service.clone(), json!({ "count": count, "max_size": max, "is_full": count >= max }));
    }
    Json(Value::Object(info)).into_response()
}

pub(super) async fn viewers(State(app): State<Arc<App>>) -> Response {
    let (active, max) = (connected(&app), app.config.max_viewers);
    let info = json!({
        "active_connections": active,
        "max_connections": max,
        "connection_limit_reached": active >= max,
    });
    Json(info).into_response()
}

fn connected(app: &App) -> usize {
    app.config.max_viewers - app.viewers.available_permits()
}
