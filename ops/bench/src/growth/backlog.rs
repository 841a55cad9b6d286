//! The row `backlog`: messages that wait for one group, of which the first are handled.

use std::time::Instant;

use anyhow::Result;
use event_client::subject::Subject;

use super::args::Load;
use super::figures::{Figure, Meter, figure, millis};
use super::store::Place;
use super::traffic::{Spec, Traffic, drain, next};

const GROUP: Spec<'_> = Spec { group: "workers", pattern: "backlog.>", keyed: false };

/// Measures a backlog of `size` messages: publishing it, the lag, the first delivery, and handling at most
/// `load.messages` of it. All sizes handle the first messages, so their costs differ by the messages behind them.
pub async fn measure(place: &Place, load: &Load, size: usize) -> Result<Vec<Figure>> {
    let traffic = Traffic::open(&place.url, load).await?;
    traffic.create(&[GROUP]).await?;
    let subject = Subject::new("backlog.placed.v1")?;
    traffic.warm_up(&GROUP, |_| traffic.message(&subject)).await?;

    let meter = Meter::start(place.server)?;
    traffic.publish(size, |_| traffic.message(&subject)).await?;
    let published = meter.stop()?;
    let lag = traffic.lag(size).await?;

    let start = Instant::now();
    let member = traffic.subscribe(&GROUP).await?;
    let first = next(&member).await?;
    let waited = start.elapsed();
    first.ack().await?;

    let handled = size.min(load.messages).saturating_sub(1);
    let meter = Meter::start(place.server)?;
    drain(&member, handled).await?;
    let drained = meter.stop()?;

    let mut figures = vec![
        figure("publish us/message", published.wall.as_secs_f64() * 1e6 / size as f64),
        millis("first delivery", waited),
    ];
    figures.extend(drained.per_message("drain", handled));
    figures.extend(lag);
    Ok(figures)
}
