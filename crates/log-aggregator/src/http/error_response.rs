//! Answers that are not a success, in FastAPI's shape: `{"detail": …}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Error, ErrorKind};
use crate::ingest::problem::Problem;

/// An answer with one sentence about what is wrong.
pub(super) fn refuse(status: StatusCode, detail: impl AsRef<str>) -> Response {
    (status, Json(json!({ "detail": detail.as_ref() }))).into_response()
}

/// 422 with a list of what is wrong.
pub(super) fn unprocessable(problems: Vec<Problem>) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": problems }))).into_response()
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = match self.kind() {
            ErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ErrorKind::Full => StatusCode::INSUFFICIENT_STORAGE,
            ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Closed => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Config => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let text = match self.kind() {
            // Paths of this machine and the store's own words are for its log.
            ErrorKind::Full => "the disk or the day's file of logs is full: nothing was taken".into(),
            ErrorKind::Unavailable => "the log store cannot be used now: the server's log says why".into(),
            _ => self.chain(),
        };
        if matches!(self.kind(), ErrorKind::Unavailable) {
            tracing::warn!(error = self.chain(), "a request could not be answered");
        }
        let mut response = refuse(status, text);
        let again = match self.kind() {
            ErrorKind::Busy => "1",
            ErrorKind::Unavailable | ErrorKind::Closed => "5",
            ErrorKind::Full => "30",
            _ => return response,
        };
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(again));
        response
    }
}
