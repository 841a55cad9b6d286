//! `/logs`: Logthon's three methods.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::{App, entry, page, reply};
use crate::error::Result;
use crate::ingest::problem::Problem;
use crate::ingest::submission;
use crate::store::{Cursor, Filter, Group, Order, Query as Question, Stored};

const ADDED: ([(header::HeaderName, &str); 1], &str) =
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"success","message":"Log entry added"}"#);

/// Records read at a time when a whole store is sent.
const PAGE: usize = 1000;

/// POST: one record, or several one after the other. 200 once it is durable, and no other success.
pub(super) async fn add(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    let body = match read(&app, &headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return reply::refuse(StatusCode::BAD_REQUEST, "There was an error parsing the body");
    }
    if !is_json(&headers) {
        return reply::unprocessable(submission::unmarked(&body));
    }
    let records = match submission::read(&body) {
        Ok(records) => records,
        Err(problems) => return reply::unprocessable(problems),
    };
    match app.ingest.offer(Group { delivery: None, records }).await {
        Ok(()) => ADDED.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn read(app: &App, headers: &HeaderMap, body: Body) -> std::result::Result<Bytes, Response> {
    let most = app.config.max_body;
    let too_large = || {
        let text = format!("the body is larger than {most} bytes: send less at once");
        reply::refuse(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(app.config.body_timeout, axum::body::to_bytes(body, most)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) => {
            let whole =
                std::error::Error::source(&error).is_some_and(|e| e.to_string().contains("length limit"));
            Err(if whole {
                too_large()
            } else {
                reply::refuse(StatusCode::BAD_REQUEST, "the body ended too early")
            })
        }
        Err(_) => {
            let text = format!("the body did not come within {:?}", app.config.body_timeout);
            Err(reply::refuse(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

/// FastAPI's rule: `application/json` and `application/…+json`, and whatever does not say what it is.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return !headers.contains_key(header::CONTENT_TYPE);
    };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.strip_prefix("application/").is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// Logthon's parameters.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    service: Option<String>,
    limit: Option<String>,
}

/// GET: the last records, the oldest first. At the address that is also the page's, browsers get the page.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or("*/*");
    let shared = matches!(uri.path(), "/api/logs" | "/api/logs/");
    let wants_page = accept.contains("text/html") || (uri.path().ends_with('/') && !accept.contains("json"));
    if shared && wants_page {
        return page::page(State(app)).await;
    }
    let limit = match which.limit.as_deref().map(|text| (text, text.trim().parse::<i64>())) {
        None => 100,
        Some((_, Ok(limit))) => limit,
        Some((text, Err(_))) => return reply::unprocessable(vec![Problem::not_an_integer("limit", text)]),
    };
    match entries(&app, which.service, limit).await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn entries(app: &Arc<App>, service: Option<String>, limit: i64) -> Result<Body> {
    let filter = Filter { services: service.clone().into_iter().collect(), ..Filter::default() };
    if (1..=PAGE as i64).contains(&limit) {
        let limit = limit as usize;
        let mut found =
            app.store.select(Question { filter, order: Order::Newest, limit, ..Question::default() }).await?;
        found.reverse();
        return Ok(Body::from(document(&found)));
    }
    // Python's slice: the last `limit`, everything for 0, all but the first ones when negative.
    let skip = if limit > 0 {
        let counts = app.store.counts().await?;
        let total: u64 = match &service {
            Some(service) => counts.get(service).copied().unwrap_or(0),
            None => counts.values().sum(),
        };
        total.saturating_sub(limit.unsigned_abs())
    } else {
        limit.unsigned_abs()
    };
    let most = if limit > 0 { limit.unsigned_abs() } else { u64::MAX };
    let question = Question { filter, order: Order::Oldest, skip, limit: PAGE, ..Question::default() };
    // The first page is read before the answer begins, so that a store that cannot be read answers an error.
    let first = app.store.select(question.clone()).await?;
    Ok(Body::from_stream(stream(Arc::clone(app), question, first, most)))
}

fn document(found: &[Stored]) -> String {
    let entries: Vec<String> = found.iter().map(entry::text_of).collect();
    format!(r#"{{"logs":[{}],"count":{}}}"#, entries.join(","), found.len())
}

/// The same document in pieces, so that a whole store fits through a little memory.
fn stream(
    app: Arc<App>,
    question: Question,
    first: Vec<Stored>,
    most: u64,
) -> impl futures_util::Stream<Item = Result<Bytes>> {
    struct State {
        app: Arc<App>,
        question: Question,
        page: Option<Vec<Stored>>,
        sent: u64,
        most: u64,
    }
    let state = State { app, question, page: Some(first), sent: 0, most };
    futures_util::stream::try_unfold(state, |mut state| async move {
        let Some(mut page) = state.page.take() else { return Ok(None) };
        page.truncate(usize::try_from(state.most - state.sent).unwrap_or(usize::MAX));
        let mut text = String::from(if state.sent == 0 { r#"{"logs":["# } else { "" });
        for stored in &page {
            if state.sent > 0 {
                text.push(',');
            }
            text.push_str(&entry::text_of(stored));
            state.sent += 1;
        }
        match page.last() {
            Some(last) if page.len() == PAGE && state.sent < state.most => {
                state.question.skip = 0;
                state.question.after = Some(Cursor { time: 0, seq: last.seq });
                state.page = Some(state.app.store.select(state.question.clone()).await?);
            }
            _ => text.push_str(&format!(r#"],"count":{}}}"#, state.sent)),
        }
        Ok(Some((Bytes::from(text), state)))
    })
}

/// DELETE: one service's records or all.
pub(super) async fn clear(State(app): State<Arc<App>>, Query(which): Query<Which>) -> Response {
    // Logthon's `service or all`: an empty name is none.
    let service = which.service.filter(|service| !service.is_empty());
    let whose = service.clone().unwrap_or_else(|| "all services".into());
    match app.store.clear(service).await {
        Ok(_) => Json(json!({ "status": "success", "message": format!("Logs cleared for {whose}") }))
            .into_response(),
        Err(error) => error.into_response(),
    }
}
