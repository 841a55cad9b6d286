//! The rows of a keyed group: `keys`, the number of keys of a backlog, and `one-key`, the backlog of a single key.

use std::time::Instant;

use anyhow::Result;
use event_client::subject::Subject;

use super::args::Load;
use super::figures::{Figure, Meter, figure, millis};
use super::store::Place;
use super::traffic::{Spec, Traffic, drain, next};

const GROUP: Spec<'_> = Spec { group: "workers", pattern: "keyed.>", keyed: true };

/// Measures a backlog of `load.messages` with `size` keys in turn, and handles all of it.
pub async fn many_keys(place: &Place, load: &Load, size: usize) -> Result<Vec<Figure>> {
    backlog(place, load, load.messages.max(1), size, load.messages).await
}

/// Measures a backlog of `size` messages of one key, and handles at most half of `load.messages`.
pub async fn one_key(place: &Place, load: &Load, size: usize) -> Result<Vec<Figure>> {
    backlog(place, load, size, 1, load.messages / 2).await
}

/// Measures `waiting` messages with `keys` keys, of which at most `wanted` are handled.
async fn backlog(
    place: &Place,
    load: &Load,
    waiting: usize,
    keys: usize,
    wanted: usize,
) -> Result<Vec<Figure>> {
    let traffic = Traffic::open(&place.url, load).await?;
    traffic.create(&[GROUP]).await?;
    let subject = Subject::new("keyed.placed.v1")?;
    let message = |number: usize| {
        let mut message = traffic.message(&subject);
        message.key = Some(format!("key{}", number % keys).into());
        message
    };
    let meter = Meter::start(place.server)?;
    traffic.publish(waiting, message).await?;
    let published = meter.stop()?;

    let file = place.file_size().await?;
    let start = Instant::now();
    let member = traffic.subscribe(&GROUP).await?;
    let first = next(&member).await?;
    let waited = start.elapsed();
    first.ack().await?;
    let handled = wanted.min(waiting).saturating_sub(1);
    let meter = Meter::start(place.server)?;
    drain(&member, handled).await?;
    let drained = meter.stop()?;

    let mut figures = vec![
        figure("publish us/message", published.wall.as_secs_f64() * 1e6 / waiting as f64),
        millis("first delivery", waited),
    ];
    figures.extend(drained.per_message("drain", handled));
    if let (Some(before), Some(after)) = (file, place.file_size().await?) {
        // A store that copies the messages behind a busy key grows while it is drained.
        figures.push(figure("file growth KiB", after.saturating_sub(before) as f64 / 1024.0));
    }
    Ok(figures)
}
