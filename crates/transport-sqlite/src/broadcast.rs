//! Broadcast subscriptions: each receives every matching message; messages are not settled.

use std::sync::Arc;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::codec;
use super::connection::Open;
use super::database::Database;
use super::error::lost;
use super::filters::Filters;
use super::group::resolve;
use super::scan::Scan;
use super::segment;
use super::wake::PAUSE;
use event_transport::Subscribe;
use event_transport::delivery::{Delivery, DeliveryInfo};
use event_transport::error::Result;
use event_transport::subject::Pattern;
use event_transport::subscription::{Feed, Health, Subscription};
use event_transport::supervise;

/// Opens a broadcast subscription.
pub(super) async fn broadcast(
    open: Arc<Open>,
    spec: Subscribe,
    closing: CancellationToken,
) -> Result<Subscription> {
    let position = {
        let mut reader = open
            .database
            .readers
            .acquire()
            .await
            .map_err(|error| open.database.explain(&error, "subscribe"))?;
        resolve(&mut reader, spec.start).await.map_err(|error| open.database.explain(&error, "subscribe"))?
    };
    let (feed, subscription) = Subscription::channel(spec.max_in_flight);
    let reading = async move {
        tokio::select! {
            () = tail(&open.database, &feed, position, spec.filters) => {}
            () = feed.stopped().cancelled() => {}
            () = closing.cancelled() => {}
        }
    };
    tokio::spawn(supervise::run("sqlite broadcast", reading, || {}));
    Ok(subscription)
}

async fn tail(database: &Database, feed: &Feed, position: i64, filters: Vec<Pattern>) {
    let mut changed = database.wake.subscribe();
    let mut scan = Scan::default();
    scan.restart(0, position, Filters::new(filters));
    while !database.queue.is_closed() {
        changed.borrow_and_update();
        match round(database, feed, &mut scan).await {
            Ok(true) => {}
            Ok(false) => {
                let _ = changed.changed().await;
            }
            Err(error) => {
                feed.report(Health::Rebuilding(error.to_string()));
                sleep(PAUSE).await;
            }
        }
    }
}

/// Delivers the messages of one read. Returns whether there may be more.
async fn round(database: &Database, feed: &Feed, scan: &mut Scan) -> Result<bool> {
    let explain = |error: sqlx::Error| database.explain(&error, "fetch");
    database.file.still_intact().map_err(|gone| lost(&gone, "fetch"))?;
    let more = scan.fill(&database.readers, &database.tail).await.map_err(explain)?;
    feed.report(Health::Live);
    feed.missed("sqlite", scan.passed_over());
    let now = codec::now();
    while let Some(stored) = scan.take().map_err(explain)? {
        if stored.is_expired(now) {
            continue;
        }
        let slot = feed.slot().await;
        let mut info = DeliveryInfo::new(1);
        info.position = Some(segment::position(stored.seq));
        info.published_at = codec::timestamp(stored.published);
        feed.push(Delivery::unleased(stored.message, info, Some(slot)));
    }
    Ok(more)
}
