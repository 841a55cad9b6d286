//! Serves the viewer's page and its files, which are embedded in the binary.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{App, error_response};

/// Content security policy: load everything from this server, allow no inline code and no embedding in a frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const PAGE: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/index.html"));
const SCRIPT: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/app.js"));
const STYLE: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/app.css"));
const ICON: &str = include_str!(concat!(env!("OUT_DIR"), "/ui/icon.svg"));

/// Serves the viewer's page.
pub(super) async fn page(State(app): State<Arc<App>>) -> Response {
    let delay = app.config.reconnect_delay.as_millis().to_string();
    guarded("text/html; charset=utf-8", PAGE.replace("RECONNECT_DELAY", &delay))
}

/// Serves a file of the viewer.
pub(super) async fn asset(Path(file): Path<String>) -> Response {
    match file.as_str() {
        "app.js" => guarded("text/javascript; charset=utf-8", SCRIPT),
        "app.css" => guarded("text/css; charset=utf-8", STYLE),
        "icon.svg" => guarded("image/svg+xml", ICON),
        _ => error_response::refuse(StatusCode::NOT_FOUND, "Not Found"),
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
