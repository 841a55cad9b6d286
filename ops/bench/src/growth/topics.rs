//! The row `topics`: topics under one group with the pattern `>`.

use std::time::Instant;

use anyhow::Result;
use event_client::subject::Subject;

use super::args::Load;
use super::figures::{Figure, Meter, figure, millis};
use super::idle;
use super::store::Place;
use super::traffic::{Spec, Traffic, drain, next};

const GROUP: Spec<'_> = Spec { group: "workers", pattern: ">", keyed: false };

/// Measures `size` topics: creating them, a backlog of `load.messages` over all of them, its lag, the first delivery,
/// handling it, and the idle group.
pub async fn measure(place: &Place, load: &Load, size: usize) -> Result<Vec<Figure>> {
    let traffic = Traffic::open(&place.url, load).await?;
    traffic.create(&[GROUP]).await?;
    let subjects = (0..size).map(|number| Subject::new(format!("topic{number}.placed.v1")));
    let subjects: Vec<Subject> = subjects.collect::<Result<_, _>>()?;
    let message = |number: usize| traffic.message(&subjects[number % size]);

    // The first message of a topic creates it.
    let meter = Meter::start(place.server)?;
    traffic.publish(size, message).await?;
    let created = meter.stop()?;
    let meter = Meter::start(place.server)?;
    traffic.publish(load.messages, message).await?;
    let published = meter.stop()?;

    let start = Instant::now();
    let member = traffic.subscribe(&GROUP).await?;
    let first = next(&member).await?;
    let waited = start.elapsed();
    first.ack().await?;
    let handled = load.messages + size - 1;
    // With a member, because a store may learn only from a member which topics match the pattern.
    let lag = traffic.lag(handled).await?;
    let meter = Meter::start(place.server)?;
    drain(&member, handled).await?;
    let drained = meter.stop()?;

    let mut figures = vec![
        figure("create us/topic", created.wall.as_secs_f64() * 1e6 / size as f64),
        figure("publish us/message", published.wall.as_secs_f64() * 1e6 / load.messages.max(1) as f64),
        millis("first delivery", waited),
    ];
    figures.extend(drained.per_message("drain", handled));
    figures.extend(lag);
    figures.extend(idle::observe(place, load.idle).await?);
    Ok(figures)
}
