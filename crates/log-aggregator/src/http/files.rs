//! Serves `/files`: forwards the request to the file storage service, as Logthon does.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use reqwest::{Method, Url};

use super::{App, error_response};

const PATIENCE: Duration = Duration::from_secs(10);
/// Longest response body that is forwarded, in bytes.
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
    let failed = |text: String| error_response::refuse(StatusCode::INTERNAL_SERVER_ERROR, text);
    let Some(base) = &app.config.file_storage_url else {
        return failed("no file storage is configured: set FILE_STORAGE_URL".into());
    };
    // The URL may contain a password, so no message repeats it.
    let Some(base) = base_of(base.expose()) else {
        return failed("FILE_STORAGE_URL has to be a URL such as http://files:9000".into());
    };
    let Some(url) = address_of(base, name) else {
        return error_response::refuse(
            StatusCode::BAD_REQUEST,
            "the file name must not contain control characters and must not be empty, `.` or `..`",
        );
    };
    let answer = match app.files.request(method, url).timeout(PATIENCE).send().await {
        Ok(answer) => answer,
        Err(error) if error.is_timeout() => {
            return failed("the file storage did not answer within 10 s".into());
        }
        Err(error) => return failed(format!("the file storage cannot be reached: {}", error.without_url())),
    };
    let status = answer.status();
    if let (StatusCode::NOT_FOUND, Some(name)) = (status, name) {
        return error_response::refuse(StatusCode::NOT_FOUND, format!("File '{name}' not found"));
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
                return failed(format!("cannot read the file storage's answer: {}", error.without_url()));
            }
        }
    }
    // Always sent as JSON, whatever type the service declares: no content of that service may run in a browser under
    // this origin.
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn base_of(text: &str) -> Option<Url> {
    // The URL parser silently removes some control characters.
    let url = Url::parse(text).ok().filter(|_| !text.contains(char::is_control))?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// Returns the URL of a file, or of the list of files. Returns `None` for a name that is not exactly the last segment
/// of the resulting URL, because that URL would address another file or all files.
fn address_of(mut base: Url, name: Option<&str>) -> Option<Url> {
    base.path_segments_mut().ok()?.pop_if_empty().push("files");
    let Some(name) = name else { return Some(base) };
    let whole = format!("{}/", base.path());
    // Added as a segment, so that a slash or a question mark is part of the name.
    base.path_segments_mut().ok()?.push(name);
    let segment = base.path().strip_prefix(&whole)?;
    let read = percent_decode_str(segment).decode_utf8().ok()?;
    let dots = matches!(name, "" | "." | "..");
    (read == name && !segment.contains('/') && !dots && !name.contains(char::is_control)).then_some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: Option<&str>) -> Option<String> {
        let base = base_of("http://user:secret@files:9000/base/?key=1").expect("a base");
        address_of(base, name).map(|url| url.path().to_owned())
    }

    #[test]
    fn a_name_is_one_segment_or_refused() {
        assert_eq!(asked(None).as_deref(), Some("/base/files"));
        for (name, path) in [
            ("a b.txt", "/base/files/a%20b.txt"),
            ("../../health", "/base/files/..%2F..%2Fhealth"),
            ("..\\x", "/base/files/..%5Cx"),
            ("%2e%2e", "/base/files/%252e%252e"),
            ("a?b#c", "/base/files/a%3Fb%23c"),
            ("...", "/base/files/..."),
            ("\u{fc}\u{202e}", "/base/files/%C3%BC%E2%80%AE"),
        ] {
            assert_eq!(asked(Some(name)).as_deref(), Some(path), "{name:?}");
        }
        for name in
            ["", ".", "..", "a\tb", "\t", ".\t.", "\n", "a\r", ".\n.", "\0", "\u{7f}", "\u{85}", "\u{1}"]
        {
            assert_eq!(asked(Some(name)), None, "{name:?}");
        }
    }

    #[test]
    fn a_base_is_an_http_address_as_it_is_written() {
        for wrong in
            ["", "files:9000", "http://", "http://fi\tles", "http://files/a\nb", "ftp://files", "file:///etc"]
        {
            assert!(base_of(wrong).is_none(), "{wrong:?}");
        }
    }
}
