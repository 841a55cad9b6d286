//! Gives responses a uniform format: errors are JSON, and browsers must not guess the type of a response.

use axum::Json;
use axum::body::to_bytes;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// Longest plain text of an error in bytes; the framework's errors are one sentence.
const MOST_BYTES: usize = 16 * 1024;

/// Makes an error response with one sentence that describes the fault.
pub(super) fn refusal(status: StatusCode, detail: &str) -> Response {
    (status, Json(json!({ "detail": detail }))).into_response()
}

/// Completes a response: an error that the framework made itself (unknown route, unsupported method, unreadable
/// parameter) gets the same JSON body as all other errors.
pub(super) async fn shaped(mut response: Response) -> Response {
    response
        .headers_mut()
        .entry(X_CONTENT_TYPE_OPTIONS)
        .or_insert(const { HeaderValue::from_static("nosniff") });
    let status = response.status();
    let kind = response.headers().get(CONTENT_TYPE);
    let bare = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !(bare && (status.is_client_error() || status.is_server_error())) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, MOST_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let detail = if text.is_empty() { status.canonical_reason().unwrap_or("error") } else { text.as_ref() };
    let mut response = refusal(status, detail);
    for (name, value) in &parts.headers {
        if ![CONTENT_TYPE, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}
