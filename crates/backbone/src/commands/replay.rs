//! `backbone replay`: a stretch of the past on the screen, or to one group again.

use std::time::Duration;

use anyhow::{Context, bail};
use event_client::Bus;
use event_client::delivery::Delivery;
use event_client::subject::{Group, Pattern};
use event_client::subscription::{Health, Subscription};
use event_client::transport::{Start, Subscribe};
use jiff::Timestamp;
use serde_json::json;
use terminal::Output;

use super::{connect, show};
use crate::args::{Global, Replay};

/// A log has no end marker. When nothing came for this long, the server is asked whether it is well; when nothing came for
/// this long after its answer either, everything that was stored has been shown.
const QUIET: Duration = Duration::from_millis(500);

/// How long the subscription may be rebuilt before the replay gives up.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(global: &Global, args: Replay, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    if let Some(group) = &args.group {
        if args.to.is_some() {
            bail!("a group goes on from --from to the present; --to is only for showing");
        }
        bus.admin().seek(Group::new(group)?, args.from.0).await?;
        if output.is_json() {
            output.json(&json!({"group": group, "rewound": true}))?;
        } else {
            output.line(&format!("{group} receives everything from there on again"))?;
        }
        return Ok(bus.close().await?);
    }
    if matches!(args.from.0, Start::New) {
        bail!("a replay starts in the past; use --from earliest, a time, or 10m");
    }
    let to = args.to.map_or_else(Timestamp::now, |moment| moment.0);
    let filters = args.patterns.iter().map(Pattern::new).collect::<event_client::Result<Vec<_>>>()?;
    let mut spec = Subscribe::broadcast(filters);
    spec.start = args.from.0;
    let subscription = bus.subscribe(spec).await?;
    while let Some(delivery) = next(&bus, &subscription).await? {
        if delivery.info().published_at.is_some_and(|at| at > to) {
            break;
        }
        let position = delivery.info().position.as_ref().map(|position| json!(position.to_string()));
        output.line(&show::text(
            output,
            delivery.message(),
            &[("position", position.unwrap_or_default())],
        ))?;
    }
    subscription.stop();
    Ok(bus.close().await?)
}

/// The next stored event; `None` when all have been shown.
///
/// # Errors
/// When the subscription has ended or is not live again in time: events may be missing then.
async fn next(bus: &Bus, subscription: &Subscription) -> anyhow::Result<Option<Delivery>> {
    let mut health = subscription.health();
    let ended = || anyhow::anyhow!("the subscription ended before everything was shown");
    let mut answered = false;
    loop {
        match tokio::time::timeout(QUIET, subscription.next()).await {
            Ok(Some(delivery)) => return Ok(Some(delivery)),
            Ok(None) => return Err(ended()),
            Err(_) if answered && *health.borrow() == Health::Live => return Ok(None),
            Err(_) => {}
        }
        // A server that is stopped or far away answers late or not at all; then silence proves nothing.
        let live = tokio::time::timeout(PATIENCE, health.wait_for(|now| *now == Health::Live)).await;
        live.context("the bus is not reachable; events may be missing")?.map_err(|_| ended())?;
        bus.admin().ping().await.context("the bus does not answer; events may be missing")?;
        answered = true;
    }
}
