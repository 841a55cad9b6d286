//! Serves `/api/v1/query`, the query API of the page and of the command line.
//!
//! Parameters, all optional: `service` (repeatable), `level` (least severity: a level word or OpenTelemetry's
//! number), `text` (words that all appear in message or attributes, `"a phrase"`), `trace_id`, `request_id`,
//! `correlation_id`, `since` and `until` (RFC 3339 or seconds since 1970), `limit` (1 to 10 000, default 100),
//! `cursor` (the `next` of the previous page). The response is `{"records": […], "next": cursor or null, "partial":
//! bool}`, the latest event time first. It ends at 32 MiB, which may be before `limit`; then `partial` is true, and
//! `next` continues. A parameter that takes one value is refused when it is given twice.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::pages::{Document, End, Pages};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::submission::{severity_of, time_from};
use crate::store::{Cursor, Filter, Order, Query as Question, Seq};

const DEFAULT_LIMIT: usize = 100;
const MOST: usize = 10_000;
/// Size in bytes after which a response ends.
const MOST_BYTES: usize = 32 * 1024 * 1024;

pub(super) type Parameters = Query<Vec<(String, String)>>;

pub(super) async fn query(State(app): State<Arc<App>>, Query(parameters): Parameters) -> Response {
    match answer(&app, parameters).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn answer(app: &App, parameters: Vec<(String, String)>) -> Result<Response> {
    let (filter, rest) = filter_of(parameters)?;
    let mut question = Question { filter, order: Order::Latest, limit: DEFAULT_LIMIT, ..Question::default() };
    for (name, value) in rest {
        match name.as_str() {
            "limit" => question.limit = limit_of(&value)?,
            "cursor" => question.after = Some(cursor_of(&value)?),
            _ => return Err(unknown(&name)),
        }
    }
    let limit = question.limit;
    let tail = move |end: &End| {
        let last = end.last.filter(|_| end.partial || end.count == limit);
        let next = last.map(|last| format!("{}_{}", last.time, last.seq));
        format!(r#"],"next":{},"partial":{}}}"#, json!(next), end.partial)
    };
    let document = Document {
        head: r#"{"records":["#,
        record: |stored| serde_json::to_string(stored).expect("a record is JSON"),
        tail: Box::new(tail),
        bytes: MOST_BYTES,
    };
    let body = document.body(Pages::of(&app.store, question)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Makes a filter of the filter parameters; returns the other parameters.
pub(super) fn filter_of(parameters: Vec<(String, String)>) -> Result<(Filter, Vec<(String, String)>)> {
    once(&parameters, &["service", "text"])?;
    let mut filter = Filter::default();
    let mut rest = Vec::new();
    for (name, value) in parameters {
        if value.is_empty() {
            continue;
        }
        let time = |value: &str| {
            let text = format!("{name} has to be a time like 2026-01-31T12:00:00Z, found {value:?}");
            time_from(value).ok_or_else(|| Error::new(ErrorKind::Invalid, text))
        };
        match name.as_str() {
            "service" => filter.services.push(value),
            "level" => {
                let text = format!(
                    "level has to be trace, debug, info, warn, error, fatal or 1 to 24, found {value:?}"
                );
                filter.severity =
                    Some(severity_of(&value).ok_or_else(|| Error::new(ErrorKind::Invalid, text))?);
            }
            "text" => filter.words.extend(Filter::words_of(&value)),
            "trace_id" => filter.trace_id = Some(value),
            "request_id" => filter.request_id = Some(value),
            "correlation_id" => filter.correlation_id = Some(value),
            "since" => filter.since = Some(time(&value)?),
            "until" => filter.until = Some(time(&value)?),
            _ => rest.push((name, value)),
        }
    }
    const MOST_CONDITIONS: usize = 100;
    if filter.services.len() + filter.words.len() > MOST_CONDITIONS {
        let text = format!("more than {MOST_CONDITIONS} services and words in one query");
        return Err(Error::new(ErrorKind::Invalid, text));
    }
    Ok((filter, rest))
}

/// Refuses a parameter that is given twice and is not repeatable, because it is not clear which of the values
/// applies.
pub(super) fn once(parameters: &[(String, String)], repeatable: &[&str]) -> Result<()> {
    let mut names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
    names.retain(|name| !repeatable.contains(name));
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(Error::new(
            ErrorKind::Invalid,
            format!("the parameter {:?} is given more than once", pair[0]),
        )),
        None => Ok(()),
    }
}

pub(super) fn limit_of(value: &str) -> Result<usize> {
    let limit = value.parse().ok().filter(|limit| (1..=MOST).contains(limit));
    let text = || format!("limit has to be a whole number from 1 to {MOST}, found {value:?}");
    limit.ok_or_else(|| Error::new(ErrorKind::Invalid, text()))
}

pub(super) fn seq_of(value: &str) -> Result<Seq> {
    let text = || format!("after has to be the number of a record, found {value:?}");
    value.parse().map_err(|_| Error::new(ErrorKind::Invalid, text()))
}

pub(super) fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("unknown parameter {name:?}"))
}

fn cursor_of(value: &str) -> Result<Cursor> {
    let cursor = || {
        let (time, seq) = value.split_once('_')?;
        Some(Cursor { time: time.parse().ok()?, seq: seq.parse().ok()? })
    };
    cursor().ok_or_else(|| Error::new(ErrorKind::Invalid, format!("cursor is not valid: {value:?}")))
}
