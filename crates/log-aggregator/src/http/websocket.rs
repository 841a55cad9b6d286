//! `/ws`: Logthon's live view. Text frames, one entry each: first the newest, the oldest of them first, then
//! what comes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use event_client::log::LogRecord;
use futures_util::{SinkExt, StreamExt};

use super::{App, entry, reply};
use crate::store::{Order, Query, Seq, Stored};

/// A viewer that takes nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a silent viewer is asked whether it is there.
const PING: Duration = Duration::from_secs(20);

pub(super) async fn watch(State(app): State<Arc<App>>, upgrade: WebSocketUpgrade) -> Response {
    let Ok(slot) = Arc::clone(&app.viewers).try_acquire_owned() else {
        return reply::refuse(StatusCode::FORBIDDEN, "the limit of viewers is reached");
    };
    upgrade
        .max_message_size(64 * 1024)
        .on_upgrade(move |socket| async move {
            // Ends when the viewer has gone, is too slow, or we shut down: nobody has to be told.
            let _ = serve(app, socket).await;
            drop(slot);
        })
        .into_response()
}

async fn serve(app: Arc<App>, socket: WebSocket) -> Option<()> {
    let (mut out, mut input) = socket.split();
    let mut viewer = app.live.watch();
    let question = Query { order: Order::Newest, limit: app.config.initial_logs, ..Query::default() };
    let mut newest = app.store.select(question).await.ok()?;
    newest.reverse();
    let seen: Seq = newest.last().map_or(0, |stored| stored.seq);
    for stored in &newest {
        send(&mut out, Message::Text(entry::text_of(stored).into())).await?;
    }
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    loop {
        let news = tokio::select! {
            news = viewer.next() => news?,
            // What a viewer says is read and ignored, as Logthon does; answers to pings are made on the way.
            said = input.next() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                Some(Ok(_)) => continue,
            },
            _ = ping.tick() => {
                send(&mut out, Message::Ping(Default::default())).await?;
                continue;
            }
        };
        if news.missed > 0 {
            send(&mut out, Message::Text(missed(news.missed).into())).await?;
        }
        for fresh in news.records.iter().filter(|fresh| fresh.stored.seq > seen) {
            tokio::time::timeout(PATIENCE, out.feed(Message::Text(fresh.frame()))).await.ok()?.ok()?;
        }
        tokio::time::timeout(PATIENCE, out.flush()).await.ok()?.ok()?;
    }
}

async fn send(out: &mut futures_util::stream::SplitSink<WebSocket, Message>, message: Message) -> Option<()> {
    tokio::time::timeout(PATIENCE, out.send(message)).await.ok()?.ok()
}

/// What a viewer that was too slow is told: an entry, because that is all its clients understand. It is not stored.
fn missed(count: u64) -> String {
    let text = format!("this viewer was too slow: {count} records were not shown; they are stored");
    let mut record = LogRecord::new("logthon", "WARNING", text);
    record.attributes.insert("missed".into(), count.into());
    entry::text_of(&Stored { seq: 0, record })
}
