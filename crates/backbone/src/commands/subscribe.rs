//! `backbone sub` and `backbone tail`: print events as they arrive.

use std::collections::VecDeque;

use anyhow::bail;
use event_client::confirm::Confirm;
use event_client::delivery::Delivery;
use event_client::subject::{Group, Pattern};
use event_client::subscription::{Health, Subscription};
use event_client::transport::{self, Start};
use serde_json::json;
use service_kit::shutdown::signal;
use terminal::{Output, note};

use super::connect::connect;
use super::show;
use crate::args::{Global, Subscribe, Tail};

/// Maximum number of events that are printed in one write and then acknowledged.
const BATCH: u64 = 64;

/// Maximum number of unconfirmed acknowledgements.
const WINDOW: usize = 256;
/// Maximum number of events that a group may have fetched and not settled. Several windows: the transport fetches the
/// next events while acknowledgements are in flight, and one commit settles many.
const CREDIT: usize = 4 * WINDOW;

pub(crate) async fn run(global: &Global, args: Subscribe, output: Output) -> anyhow::Result<()> {
    receive(global, &args.patterns, args.group.as_deref(), args.from.0, args.limit, output).await
}

pub(crate) async fn tail(global: &Global, args: Tail, output: Output) -> anyhow::Result<()> {
    receive(global, &args.patterns, None, args.since.0, args.limit, output).await
}

async fn receive(
    global: &Global,
    patterns: &[String],
    group: Option<&str>,
    start: Start,
    limit: Option<u64>,
    output: Output,
) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    let filters = patterns.iter().map(Pattern::new).collect::<event_client::Result<Vec<_>>>()?;
    let mut spec = match group {
        Some(group) => transport::Subscribe::group(Group::new(group)?, filters),
        None => transport::Subscribe::broadcast(filters),
    };
    spec.start = start;
    if group.is_some() {
        spec.max_in_flight = CREDIT;
    }
    let subscription = bus.subscribe(spec).await?;
    if !output.is_json() {
        note(&output.dim(&format!("receiving {} (Ctrl-C stops)", patterns.join(" "))));
    }
    let mut left = limit.unwrap_or(u64::MAX);
    let mut acks = VecDeque::new();
    let mut stop = std::pin::pin!(signal());
    let mut health = subscription.health();
    while left > 0 {
        let batch = tokio::select! {
            batch = next_batch(&subscription, left.min(BATCH)) => batch,
            Ok(()) = health.changed() => {
                if let Health::Rebuilding(why) = &*health.borrow_and_update() {
                    note(&output.dim(&format!("events cannot be received at the moment: {why}")));
                }
                continue;
            }
            _ = &mut stop => break,
        };
        if batch.is_empty() {
            bail!("the subscription ended unexpectedly: {:?}", *subscription.health().borrow());
        }
        let lines: Vec<String> =
            batch.iter().map(|delivery| line(delivery, group.is_some(), output)).collect();
        // Print first, then acknowledge: an event that was not printed is delivered again.
        output.line(&lines.join("\n"))?;
        left -= batch.len() as u64;
        acks.extend(batch.into_iter().map(Delivery::ack));
        confirm(&mut acks, WINDOW).await?;
    }
    // The command fails if the subscription was not live when it ended.
    let deaf = match &*health.borrow() {
        Health::Rebuilding(why) if left > 0 => Some(why.clone()),
        _ => None,
    };
    subscription.stop();
    confirm(&mut acks, 0).await?;
    bus.close().await?;
    match deaf {
        Some(why) => bail!("events could not be received at the end: {why}"),
        None => Ok(()),
    }
}

/// Returns the next delivery and those that have already arrived; empty when the subscription has ended.
async fn next_batch(subscription: &Subscription, most: u64) -> Vec<Delivery> {
    let Some(first) = subscription.next().await else { return Vec::new() };
    let mut batch = vec![first];
    while (batch.len() as u64) < most {
        let Some(delivery) = subscription.try_next() else { break };
        batch.push(delivery);
    }
    batch
}

/// Waits until at most `most` acknowledgements are unconfirmed.
async fn confirm(acks: &mut VecDeque<Confirm<()>>, most: usize) -> anyhow::Result<()> {
    while acks.len() > most {
        acks.pop_front().expect("there are more").await?;
    }
    Ok(())
}

fn line(delivery: &Delivery, counted: bool, output: Output) -> String {
    let info = delivery.info();
    let mut extra = vec![(
        "position",
        info.position.as_ref().map(|position| json!(position.to_string())).unwrap_or_default(),
    )];
    if counted && info.attempt > 1 {
        extra.push(("attempt", json!(info.attempt)));
    }
    show::text(output, delivery.message(), &extra)
}
