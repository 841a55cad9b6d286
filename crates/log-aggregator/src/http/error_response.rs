//! Makes error responses in FastAPI's format: `{"detail": …}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::error::{Error, ErrorKind};
use crate::ingest::problem::Problem;

/// Makes a response with one sentence that describes the error.
pub(super) fn refuse(status: StatusCode, detail: impl AsRef<str>) -> Response {
    (status, Json(json!({ "detail": detail.as_ref() }))).into_response()
}

/// Makes a 422 response with a list of problems.
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
            // Paths of this machine and the store's error texts are written to the server's log only.
            ErrorKind::Full => "the disk or the day's log file is full: no record was stored".into(),
            ErrorKind::Unavailable => {
                "the log store is not available: see the server's log for the reason".into()
            }
            _ => self.chain(),
        };
        if matches!(self.kind(), ErrorKind::Unavailable) {
            tracing::warn!(error = self.chain(), "a request failed because the log store is not available");
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
