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

use super::feed::{Batch, Feed};
use super::query::Parameters;
use super::{App, error_response, query};
use crate::error::Result;
use crate::store::Seq;

/// Records that a reader can catch up with after it was away.
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
            // The header is the later of the two: a browser sends it when it comes back to the same address.
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
    // Proxies of nginx's kind hold events back unless told not to.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

impl Tail {
    /// The next events, each made when it is taken. `None` ends the tail: a reader that comes back then goes on where
    /// it was.
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
                tracing::warn!(error = error.chain(), "a tail ends: its records cannot be read");
                return None;
            }
        })
    }
}

type Events = Box<dyn Iterator<Item = std::result::Result<Event, Infallible>> + Send>;

fn dropped(count: Option<u64>) -> Event {
    Event::default().event("dropped").data(json!({ "count": count }).to_string())
}
