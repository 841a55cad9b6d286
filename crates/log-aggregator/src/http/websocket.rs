//! Serves `/ws`, Logthon's live view: text frames with one entry each. The newest stored records come first, in order
//! of arrival, then new records.
//!
//! The server closes the connection with 1001 when the aggregator shuts down, with 1008 when the viewer answers no
//! ping, reads nothing for 30 s or violates the protocol, and with 1011 when the store cannot be read. A close frame
//! of the viewer is answered with the same code.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use event_client::log::LogRecord;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::feed::{Batch, Feed};
use super::{App, error_response, logthon_entry};
use crate::store::{Filter, Stored};

/// A viewer that reads nothing for this time is disconnected.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest time to send the close frame, and again to wait for that of the viewer.
const PARTING: Duration = Duration::from_secs(1);

pub(super) async fn watch(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(slot) = Arc::clone(&app.viewers).try_acquire_owned() else {
        return error_response::refuse(StatusCode::FORBIDDEN, "the limit of viewers is reached");
    };
    upgrade
        .max_message_size(64 * 1024)
        .on_upgrade(move |socket| async move {
            let (mut out, mut input) = socket.split();
            let parting = serve(&app, &mut out, &mut input).await;
            if let Some((code, reason)) = parting {
                let close = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
                drop(timeout(PARTING, out.send(close)).await);
            }
            // Read until the viewer's close frame; this also sends the answer to a close frame that the viewer sent
            // first.
            drop(timeout(PARTING, async { while let Some(Ok(_)) = input.next().await {} }).await);
            drop(slot);
        })
        .into_response()
}

/// Reason of the end as close code and text; `None` when the viewer closed the connection or it was lost.
type Parting = Option<(u16, &'static str)>;

async fn serve(
    app: &Arc<App>,
    out: &mut SplitSink<WebSocket, Message>,
    input: &mut SplitStream<WebSocket>,
) -> Parting {
    const UNREADABLE: Parting = Some((close_code::ERROR, "the logs cannot be read now"));
    let Ok(mut feed) = Feed::with_backlog(app, Filter::default(), app.config.initial_logs).await else {
        return UNREADABLE;
    };
    let mut ping = interval_at(Instant::now() + app.config.ping, app.config.ping);
    ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = true;
    loop {
        let batch = tokio::select! {
            // Read the viewer's frames first, so that its answer to a ping is not missed.
            biased;
            // The content of the frames is ignored, as in Logthon; reading also answers the viewer's pings.
            said = input.next() => match said? {
                Ok(Message::Close(_)) => return None,
                Ok(_) => {
                    heard = true;
                    continue;
                }
                Err(_) => return Some((close_code::POLICY, "protocol error: a frame cannot be read")),
            },
            _ = ping.tick() => {
                if !std::mem::take(&mut heard) {
                    return Some((close_code::POLICY, "no answer to a ping"));
                }
                if !send(out, Message::Ping(Default::default())).await {
                    return Some((close_code::POLICY, "too slow"));
                }
                continue;
            }
            batch = feed.next() => batch,
        };
        let sent = match batch {
            Ok(Some(Batch::Stored(records))) => {
                send_all(out, records.iter().map(|stored| logthon_entry::text_of(stored).into())).await
            }
            Ok(Some(Batch::Fresh(missed, records))) => {
                let told = (missed > 0).then(|| too_slow(missed).into());
                send_all(out, told.into_iter().chain(records.iter().map(|fresh| fresh.frame()))).await
            }
            Ok(Some(Batch::Gap)) => true,
            Ok(None) => return Some((close_code::AWAY, "the log aggregator stops")),
            Err(_) => return UNREADABLE,
        };
        if !sent {
            return Some((close_code::POLICY, "too slow"));
        }
    }
}

/// Sends frames, each made when the socket can take it; returns false when the viewer reads nothing or the connection
/// is lost.
async fn send_all(
    out: &mut SplitSink<WebSocket, Message>,
    frames: impl Iterator<Item = axum::extract::ws::Utf8Bytes>,
) -> bool {
    for frame in frames {
        if !matches!(timeout(PATIENCE, out.feed(Message::Text(frame))).await, Ok(Ok(()))) {
            return false;
        }
    }
    matches!(timeout(PATIENCE, out.flush()).await, Ok(Ok(())))
}

async fn send(out: &mut SplitSink<WebSocket, Message>, message: Message) -> bool {
    matches!(timeout(PATIENCE, out.send(message)).await, Ok(Ok(())))
}

/// The notice for a viewer that was too slow, in the form of an entry, because clients accept nothing else. It is not
/// stored.
fn too_slow(count: u64) -> String {
    let text = format!("this viewer was too slow: {count} records were not shown; they are stored");
    let mut record = LogRecord::new("logthon", "WARNING", text);
    record.attributes.insert("missed".into(), count.into());
    logthon_entry::text_of(&Stored { seq: 0, record })
}
