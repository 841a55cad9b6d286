//! `/api/v1/tail`: records as they are stored, as server-sent events, filtered here.
//!
//! Parameters: those of a filter (see [`query`](super::query)) and `backlog`, how many of the newest matching
//! records come first (0 to 10 000, default 0). Each event's id is the record's number and its data the record;
//! a reader that comes back with `Last-Event-ID`, or `after` as a parameter, gets what it missed, up to 10 000
//! records. An event `dropped`
//! with `{"count": n}` tells a reader that was too slow how many records passed it by, before filtering; one
//! with `{"count": null}` that more than 10 000 records came while it was away.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::OwnedSemaphorePermit;

use super::{App, query, reply};
use crate::error::Result;
use crate::live::{News, Viewer};
use crate::store::{Cursor, Filter, Order, Query as Question, Seq};

/// Records that a reader can catch up with after it was away.
const MOST: usize = 10_000;

pub(super) async fn tail(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(parameters): query::Parameters,
) -> Response {
    let Ok(slot) = Arc::clone(&app.viewers).try_acquire_owned() else {
        return reply::refuse(StatusCode::SERVICE_UNAVAILABLE, "the limit of viewers is reached");
    };
    let id = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    match open(&app, parameters, id, slot).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

struct Tail {
    viewer: Viewer,
    filter: Filter,
    seen: Seq,
    first: Vec<Event>,
    _slot: OwnedSemaphorePermit,
}

async fn open(
    app: &App,
    parameters: Vec<(String, String)>,
    mut id: Option<Seq>,
    slot: OwnedSemaphorePermit,
) -> Result<Response> {
    let (filter, rest) = query::filter_of(parameters)?;
    let mut backlog = 0;
    for (name, value) in rest {
        match name.as_str() {
            "backlog" if value == "0" => backlog = 0,
            "backlog" => backlog = query::limit_of(&value)?,
            // The header is the later of the two: a browser sends it when it comes back to the same address.
            "after" => id = id.or(Some(query::seq_of(&value)?)),
            _ => return Err(query::unknown(&name)),
        }
    }
    let viewer = app.live.watch();
    let mut question =
        Question { filter: filter.clone(), order: Order::Newest, limit: backlog, ..Question::default() };
    if let Some(seq) = id {
        question.order = Order::Oldest;
        question.after = Some(Cursor { time: 0, seq });
        question.limit = MOST + 1;
    }
    let mut records = if question.limit == 0 { Vec::new() } else { app.store.select(question).await? };
    let mut first = Vec::with_capacity(records.len());
    if id.is_none() {
        records.reverse();
    } else if records.len() > MOST {
        // The gap is told, and what follows is only what is new.
        records.clear();
        first.push(dropped(None));
    }
    let seen = records.last().map_or(id.unwrap_or(0), |stored| stored.seq);
    first.extend(records.iter().map(|stored| {
        let json = serde_json::to_string(stored).expect("a record is JSON");
        Event::default().id(stored.seq.to_string()).data(json)
    }));
    let tail = Tail { viewer, filter, seen, first, _slot: slot };
    let events = stream::unfold(tail, |mut tail| async move {
        let events = tail.next().await?;
        Some((stream::iter(events.into_iter().map(Ok::<_, Infallible>)), tail))
    });
    let events = futures_util::StreamExt::flatten(events);
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response();
    // Proxies of nginx's kind hold events back unless told not to.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Tail {
    async fn next(&mut self) -> Option<Vec<Event>> {
        if !self.first.is_empty() {
            return Some(std::mem::take(&mut self.first));
        }
        loop {
            let News { missed, records } = self.viewer.next().await?;
            let mut events = Vec::new();
            if missed > 0 {
                events.push(dropped(Some(missed)));
            }
            for fresh in records {
                if fresh.stored.seq > self.seen && self.filter.matches(&fresh.stored.record) {
                    events.push(Event::default().id(fresh.stored.seq.to_string()).data(fresh.json()));
                }
            }
            if !events.is_empty() {
                return Some(events);
            }
        }
    }
}

fn dropped(count: Option<u64>) -> Event {
    Event::default().event("dropped").data(json!({ "count": count }).to_string())
}
