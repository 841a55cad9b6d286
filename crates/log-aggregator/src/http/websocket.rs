//! `/ws`: Logthon's live view. Text frames, one entry each: first the newest, the oldest of them first, then
//! what comes.
//!
//! It closes with 1001 when the aggregator ends, 1008 when the viewer answers no ping, takes nothing for 30 s or breaks
//! the protocol, 1011 when the store cannot be read; a viewer's own close is answered with its code.

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

/// A viewer that takes nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the end may take on either side.
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
            // The other side's close is read, or ours is sent, on the way to the end.
            drop(timeout(PARTING, async { while let Some(Ok(_)) = input.next().await {} }).await);
            drop(slot);
        })
        .into_response()
}

/// Why it ends, as the close code and a sentence; `None` when the viewer closed it or is gone.
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
            // What a viewer says is read first, so that its answer to a ping is not overlooked.
            biased;
            // And it is ignored, as Logthon does; answers to pings are made on the way.
            said = input.next() => match said? {
                Ok(Message::Close(_)) => return None,
                Ok(_) => {
                    heard = true;
                    continue;
                }
                Err(_) => return Some((close_code::POLICY, "a viewer has nothing to say that is not understood")),
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

/// Sends frames, each made when there is room for it; false when the viewer takes none or is gone.
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

/// What a viewer that was too slow is told: an entry, because that is all its clients understand. It is not stored.
fn too_slow(count: u64) -> String {
    let text = format!("this viewer was too slow: {count} records were not shown; they are stored");
    let mut record = LogRecord::new("logthon", "WARNING", text);
    record.attributes.insert("missed".into(), count.into());
    logthon_entry::text_of(&Stored { seq: 0, record })
}
