//! `/files`: handed on to the file storage service, as Logthon does.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use reqwest::Method;

use super::{App, reply};

const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is passed on.
const MOST_BYTES: usize = 16 * 1024 * 1024;

pub(super) async fn all(State(app): State<Arc<App>>) -> Response {
    pass_on(&app, Method::GET, None).await
}

pub(super) async fn remove_all(State(app): State<Arc<App>>) -> Response {
    pass_on(&app, Method::DELETE, None).await
}

pub(super) async fn one(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    pass_on(&app, Method::GET, Some(&name)).await
}

pub(super) async fn remove(State(app): State<Arc<App>>, Path(name): Path<String>) -> Response {
    pass_on(&app, Method::DELETE, Some(&name)).await
}

async fn pass_on(app: &App, method: Method, name: Option<&str>) -> Response {
    let failed = |text: String| reply::refuse(StatusCode::INTERNAL_SERVER_ERROR, text);
    let Some(base) = &app.config.file_storage_url else {
        return failed("no file storage is configured: set FILE_STORAGE_URL".into());
    };
    let mut url = match reqwest::Url::parse(base) {
        Ok(url) if !url.cannot_be_a_base() => url,
        _ => return failed(format!("FILE_STORAGE_URL is not a URL: {base}")),
    };
    if let Ok(mut path) = url.path_segments_mut() {
        // As segments, so that no name reaches another path: `..` and slashes are text in a name.
        path.pop_if_empty().push("files").extend(name);
    }
    if name.is_some_and(|name| matches!(name, "." | "..")) {
        return reply::refuse(
            StatusCode::NOT_FOUND,
            format!("File '{}' not found", name.unwrap_or_default()),
        );
    }
    let answer = match app.files.request(method, url).timeout(PATIENCE).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => {
            return failed("the file storage did not answer within 10 s".into());
        }
        Err(error) => return failed(format!("the file storage cannot be reached: {}", error.without_url())),
    };
    let status = answer.status();
    if let (StatusCode::NOT_FOUND, Some(name)) = (status, name) {
        return reply::refuse(StatusCode::NOT_FOUND, format!("File '{name}' not found"));
    }
    if !status.is_success() {
        return failed(format!("the file storage answered {status}"));
    }
    let mut answer = answer;
    let mut body = Vec::new();
    loop {
        match answer.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= MOST_BYTES => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                return failed(format!("the file storage's answer is larger than {MOST_BYTES} bytes"));
            }
            Ok(None) => break,
            Err(error) => {
                return failed(format!("the file storage's answer broke off: {}", error.without_url()));
            }
        }
    }
    // JSON, whatever the service calls it: nothing from there runs in a browser under our name.
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
