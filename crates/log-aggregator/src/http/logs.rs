//! Serves `/logs`: Logthon's methods POST, GET and DELETE.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use event_client::log::LogRecord;
use serde_json::json;

use super::pages::{Document, Pages};
use super::query::{self, Parameters};
use super::{App, error_response, logthon_entry};
use crate::error::Result;
use crate::ingest::problem::Problem;
use crate::ingest::submission;
use crate::store::{Cursor, Filter, Order, Query as Question, RecordBatch};

const ADDED: ([(header::HeaderName, &str); 1], &str) =
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"success","message":"Log entry added"}"#);

/// POST: stores one record or several consecutive ones. 200 after they are durable; there is no other success status.
pub(super) async fn add(State(app): State<Arc<App>>, headers: HeaderMap, body: Body) -> Response {
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING).filter(|encoding| !is_identity(encoding)) {
        let text = format!("Content-Encoding {encoding:?} is not supported: send the body without encoding");
        return error_response::refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    }
    let body = match read(&app, &headers, body).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    if !is_json(&headers) {
        return error_response::unprocessable(submission::unmarked(&body));
    }
    let records = match submission::read(&body) {
        Ok(records) => records,
        Err(problems) => return error_response::unprocessable(problems),
    };
    match app.ingest.offer(RecordBatch { delivery: None, records }).await {
        Ok(()) => ADDED.into_response(),
        Err(error) => error.into_response(),
    }
}

async fn read(app: &App, headers: &HeaderMap, body: Body) -> std::result::Result<Bytes, Response> {
    let most = app.config.max_body;
    let too_large = || {
        let text = format!("the body is larger than {most} bytes: send a smaller one");
        error_response::refuse(StatusCode::PAYLOAD_TOO_LARGE, text)
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
                error_response::refuse(StatusCode::BAD_REQUEST, "the body ended too early")
            })
        }
        Err(_) => {
            let text = format!("the body was not received within {:?}", app.config.body_timeout);
            Err(error_response::refuse(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}

fn is_identity(encoding: &HeaderValue) -> bool {
    encoding.to_str().is_ok_and(|text| text.split(',').all(|one| one.trim().eq_ignore_ascii_case("identity")))
}

/// FastAPI's rule: `application/json`, `application/…+json`, and a body without a content type are JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) else {
        return !headers.contains_key(header::CONTENT_TYPE);
    };
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.strip_prefix("application/").is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// Logthon's parameters; other parameters are ignored, as Logthon does.
#[derive(Debug, Default)]
struct Which {
    service: Option<String>,
    limit: Option<String>,
}

impl Which {
    fn of(parameters: Vec<(String, String)>) -> Result<Self> {
        let mut which = Self::default();
        let known = |(name, _): &(String, String)| matches!(name.as_str(), "service" | "limit");
        let parameters: Vec<_> = parameters.into_iter().filter(known).collect();
        query::once(&parameters, &[])?;
        for (name, value) in parameters {
            *if name == "service" { &mut which.service } else { &mut which.limit } = Some(value);
        }
        Ok(which)
    }
}

/// GET: returns the last records, the oldest first.
pub(super) async fn list(State(app): State<Arc<App>>, Query(parameters): Parameters) -> Response {
    let which = match Which::of(parameters) {
        Ok(which) => which,
        Err(error) => return error.into_response(),
    };
    let limit = match which.limit.as_deref().map(|text| (text, text.trim().parse::<i64>())) {
        None => 100,
        Some((_, Ok(limit))) => limit,
        Some((text, Err(_))) => {
            return error_response::unprocessable(vec![Problem::not_an_integer("limit", text)]);
        }
    };
    match entries(&app, which.service, limit).await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn entries(app: &Arc<App>, service: Option<String>, limit: i64) -> Result<Body> {
    let filter = Filter { services: service.into_iter().collect(), ..Filter::default() };
    let mut question = Question { filter, order: Order::Oldest, limit: usize::MAX, ..Question::default() };
    // As Python's slice: the last `limit` records, all for 0, all but the first `-limit` records for a negative
    // value.
    if limit > 0 {
        question.limit = usize::try_from(limit).unwrap_or(usize::MAX);
        // All records from the oldest of these on; from the beginning when there are fewer.
        let oldest =
            Question { order: Order::Newest, skip: limit.unsigned_abs() - 1, limit: 1, ..question.clone() };
        let oldest = app.store.select(oldest).await?.records;
        question.after = oldest.first().map(|oldest| Cursor { time: 0, seq: oldest.seq - 1 });
    } else {
        question.skip = limit.unsigned_abs();
    }
    let document = Document {
        head: r#"{"logs":["#,
        record: logthon_entry::text_of,
        tail: Box::new(|end| format!(r#"],"count":{}}}"#, end.count)),
        bytes: usize::MAX,
    };
    document.body(Pages::of(&app.store, question)).await
}

/// DELETE: deletes the records of one service or all records. Each deletion is recorded: as a line in the log of the
/// process and, if the aggregator stores records about itself, as a log record.
pub(super) async fn clear(
    State(app): State<Arc<App>>,
    peer: Option<Extension<ConnectInfo<SocketAddr>>>,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Response {
    // As Logthon's `service or all`: an empty name means all services.
    let service = match Which::of(parameters) {
        Ok(which) => which.service.filter(|service| !service.is_empty()),
        Err(error) => return error.into_response(),
    };
    let whose = service.clone().unwrap_or_else(|| "all services".into());
    let removed = match app.store.clear(service).await {
        Ok(removed) => removed,
        Err(error) => return error.into_response(),
    };
    let client = peer.map_or_else(|| "unknown".into(), |Extension(ConnectInfo(peer))| peer.to_string());
    let said = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let (agent, forwarded) = (said("user-agent"), said("x-forwarded-for"));
    tracing::warn!(service = ?whose, records = removed, client, ?agent, ?forwarded, "logs were cleared");
    if app.config.announce {
        let mut trace =
            LogRecord::new("logthon", "WARNING", format!("Logs cleared for {whose}: {removed} records"));
        let agent = agent.map(|agent| ("user_agent.original", agent.into()));
        let forwarded = forwarded.map(|forwarded| ("forwarded_for", forwarded.into()));
        let fields = [("cleared_service", whose.as_str().into()), ("cleared_records", removed.into())];
        let fields =
            fields.into_iter().chain([("client.address", client.into())]).chain(agent).chain(forwarded);
        trace.attributes.extend(fields.map(|(name, value)| (name.to_owned(), value)));
        if let Err(error) = app.ingest.offer(RecordBatch { delivery: None, records: vec![trace] }).await {
            tracing::warn!(error = error.chain(), "cannot store the log record of this deletion");
        }
    }
    Json(json!({ "status": "success", "message": format!("Logs cleared for {whose}") })).into_response()
}
