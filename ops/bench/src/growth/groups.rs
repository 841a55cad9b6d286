//! The row `groups`: groups on one topic, each of which handles every message of a burst and is idle afterwards.

use std::time::Instant;

use anyhow::Result;
use event_client::subject::Subject;
use tokio::task::JoinSet;

use super::args::Load;
use super::figures::{Figure, Meter, figure, millis};
use super::idle;
use super::store::Place;
use super::traffic::{Spec, Traffic, drain};
use crate::usage;

/// Measures `size` groups: opening one member each, a burst of a tenth of `load.messages` that every group handles, the
/// memory and the file that remain per group, and the idle groups.
pub async fn measure(place: &Place, load: &Load, size: usize) -> Result<Vec<Figure>> {
    let traffic = Traffic::open(&place.url, load).await?;
    let names: Vec<String> = (0..size).map(|number| format!("workers{number}")).collect();
    let spec = |group| Spec { group, pattern: "burst.>", keyed: false };
    let subject = Subject::new("burst.placed.v1")?;
    // The first message creates the topic.
    traffic.publish(1, |_| traffic.message(&subject)).await?;

    let start = Instant::now();
    let mut members = Vec::with_capacity(size);
    for name in &names {
        members.push(traffic.subscribe(&spec(name)).await?);
    }
    let opened = start.elapsed();

    let burst = (load.messages / 10).max(1);
    let (memory, file) = (usage::own_memory()?, place.file_size().await?);
    let meter = Meter::start(place.server)?;
    let mut running = JoinSet::new();
    for member in &members {
        let member = member.clone();
        running.spawn(async move { drain(&member, burst).await });
    }
    traffic.publish(burst, |_| traffic.message(&subject)).await?;
    while let Some(done) = running.join_next().await {
        done??;
    }
    let cost = meter.stop()?;

    let mut figures = vec![millis("open all", opened)];
    figures.extend(cost.per_message("burst", burst * size));
    let per_group = |before: u64, after: u64| after.saturating_sub(before) as f64 / 1024.0 / size as f64;
    figures.push(figure("memory kept KiB/group", per_group(memory, usage::own_memory()?)));
    if let (Some(before), Some(after)) = (file, place.file_size().await?) {
        figures.push(figure("file kept KiB/group", per_group(before, after)));
    }
    let start = Instant::now();
    traffic.transport.admin().groups().await?;
    figures.push(millis("lag of all", start.elapsed()));
    figures.extend(idle::observe(place, load.idle).await?);
    Ok(figures)
}
