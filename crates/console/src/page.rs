//! Serves the log viewer's page and its files, which are embedded in the program.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use log_aggregator::paths;
use serde_json::json;

/// Content security policy: load everything from this server, allow no inline code and no embedding in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/index.html"));
const SCRIPT: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/app.js"));
const STYLE: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/app.css"));
const ICON: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/icon.svg"));

/// Paths at which both the page and the list of records are served. The list is the route of the log aggregator.
const SHARED: [&str; 2] = ["/api/logs", "/api/logs/"];

/// Settings of the pages.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Time that a page waits before it reconnects. Default: the log aggregator's
    /// [`reconnect_delay`](log_aggregator::Config::reconnect_delay).
    pub reconnect_delay: Duration,
}

impl Settings {
    /// Returns the settings of the pages that a log aggregator with this configuration serves.
    pub fn of(config: &log_aggregator::Config) -> Self {
        Self { reconnect_delay: config.reconnect_delay }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(&log_aggregator::Config::default())
    }
}

/// Returns the routes of `api`, the router of a log aggregator, together with those of the pages.
///
/// The log viewer is at `/`, its files are below `/ui/`, and both are at every path that [`log_aggregator::paths`] gives
/// them. The path `/api/logs` belongs to the list of records: a browser, which accepts `text/html`, gets the page there.
pub fn mount(api: Router, settings: &Settings) -> Router {
    let delay = settings.reconnect_delay.as_millis().to_string();
    let page: Arc<str> = PAGE.replace("RECONNECT_DELAY", &delay).into();
    let own = |path: &String| !SHARED.contains(&path.as_str());
    let mut pages = Router::new();
    for path in paths("/").into_iter().filter(own) {
        pages = pages.route(&path, get(show));
    }
    for path in paths("/ui/{file}") {
        pages = pages.route(&path, get(asset));
    }
    api.layer(from_fn_with_state(Arc::clone(&page), page_or_list)).merge(pages.with_state(page))
}

/// Answers a browser's request for a shared path with the page, and passes every other request on.
async fn page_or_list(State(page): State<Arc<str>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let path = request.uri().path();
    if reads && SHARED.contains(&path) {
        let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let accept = accept.unwrap_or("*/*");
        if accept.contains("text/html") || (path.ends_with('/') && !accept.contains("json")) {
            return show(State(page)).await;
        }
    }
    next.run(request).await
}

/// Serves the page.
async fn show(State(page): State<Arc<str>>) -> Response {
    guarded("text/html; charset=utf-8", page.to_string())
}

/// Serves a file of the page.
async fn asset(Path(file): Path<String>) -> Response {
    match file.as_str() {
        "app.js" => guarded("text/javascript; charset=utf-8", SCRIPT),
        "app.css" => guarded("text/css; charset=utf-8", STYLE),
        "icon.svg" => guarded("image/svg+xml", ICON),
        _ => (StatusCode::NOT_FOUND, Json(json!({ "detail": "Not Found" }))).into_response(),
    }
}

fn guarded(kind: &'static str, body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    let headers: [(HeaderName, &'static str); 5] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}
