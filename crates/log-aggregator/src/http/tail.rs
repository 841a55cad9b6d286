//! Serves `/api/v1/tail`: sends newly stored records as server-sent events, filtered on the server.
//!
//! Parameters: those of a filter (see [`query`](super::query)) and `backlog`, the number of newest matching records
//! that are sent first (0 to 10 000, default 0). The id of each event is the record's number, its data the record. A
//! client that reconnects with `Last-Event-ID`, or with `after` as a parameter, receives the records that it missed,
//! up to 10 000. An event `dropped` with `{"count": n}` reports to a client that was too slow the number of missed
//! records, before filtering; one with `{"count": null}` reports that more than 10 000 records arrived while the
//! client was disconnected.

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

use super::feed::{Batch, Feed};
use super::query::Parameters;
use super::{App, error_response, query};
use crate::error::Result;
use crate::store::Seq;

/// Maximum number of records that a client can catch up with after a disconnection.
const MOST: u64 = 10_000;

pub(super) async fn tail(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Query(parameters): Parameters,
) -> Response {
    let Ok(slot) = Arc::clone(&app.viewers).try_acquire_owned() else {
        return error_response::refuse(StatusCode::SERVICE_UNAVAILABLE, "the limit of viewers is reached");
    };
    let id = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    match open(&app, parameters, id, slot).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

struct Tail {
    feed: Feed,
    _slot: OwnedSemaphorePermit,
}

async fn open(
    app: &Arc<App>,
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
            // If both are given, the header is newer: a browser sends it when it reconnects to the same address.
            "after" => id = id.or(Some(query::seq_of(&value)?)),
            _ => return Err(query::unknown(&name)),
        }
    }
    let feed = match id {
        Some(seen) => Feed::after(app, filter, seen, MOST).await?,
        None => Feed::with_backlog(app, filter, backlog).await?,
    };
    let events = stream::unfold(Tail { feed, _slot: slot }, |mut tail| async move {
        let events = tail.next().await?;
        Some((stream::iter(events), tail))
    });
    let events = futures_util::StreamExt::flatten(events);
    let mut response =
        Sse::new(events).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response();
    // nginx and compatible proxies buffer the events without this header.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Tail {
    /// Returns the next events, each serialised when it is taken. `None` ends the tail: a client that reconnects
    /// continues at its last event.
    async fn next(&mut self) -> Option<Events> {
        Some(match self.feed.next().await {
            Ok(Some(Batch::Gap)) => Box::new(std::iter::once(Ok(dropped(None)))),
            Ok(Some(Batch::Stored(records))) => Box::new(records.into_iter().map(|stored| {
                let json = serde_json::to_string(&stored).expect("a record is JSON");
                Ok(Event::default().id(stored.seq.to_string()).data(json))
            })),
            Ok(Some(Batch::Fresh(missed, records))) => {
                let told = (missed > 0).then(|| Ok(dropped(Some(missed))));
                let fresh = records
                    .into_iter()
                    .map(|fresh| Ok(Event::default().id(fresh.stored.seq.to_string()).data(fresh.json())));
                Box::new(told.into_iter().chain(fresh))
            }
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(error = error.chain(), "a tail ends because the records cannot be read");
                return None;
            }
        })
    }
}

type Events = Box<dyn Iterator<Item = std::result::Result<Event, Infallible>> + Send>;

fn dropped(count: Option<u64>) -> Event {
    Event::default().event("dropped").data(json!({ "count": count }).to_string())
}
