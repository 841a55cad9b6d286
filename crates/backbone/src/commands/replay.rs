//! `backbone replay`: shows stored events of a period, or delivers them to one group again.

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

use super::connect::connect;
use super::show;
use crate::args::{Global, Replay};

/// Time without a delivery after which the server is pinged. A log has no end marker: if nothing arrives for this
/// time after the answer to the ping either, all stored events have been shown.
const QUIET: Duration = Duration::from_millis(500);

/// The same after a ping that was answered late: a server that stood still, or a busy machine, needs time for its
/// deliveries as well.
const QUIET_AFTER_DELAY: Duration = Duration::from_secs(5);

/// Longest time for the subscription to be rebuilt before the replay fails.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(global: &Global, args: Replay, output: Output) -> anyhow::Result<()> {
    let bus = connect(global).await?;
    if let Some(group) = &args.group {
        if args.to.is_some() {
            bail!("--to cannot be used with --group: a group receives all events from --from to the present");
        }
        bus.admin().seek(Group::new(group)?, args.from.0).await?;
        if output.is_json() {
            output.json(&json!({"group": group, "rewound": true}))?;
        } else {
            output.line(&format!("the group {group} receives all events since --from again"))?;
        }
        return Ok(bus.close().await?);
    }
    if matches!(args.from.0, Start::New) {
        bail!("a replay starts in the past: set --from to `earliest`, a time, or a duration such as `10m`");
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

/// Returns the next stored event; `None` when all have been shown.
///
/// # Errors
/// When the subscription has ended or is not live again in time: events may be missing then.
async fn next(bus: &Bus, subscription: &Subscription) -> anyhow::Result<Option<Delivery>> {
    let mut health = subscription.health();
    let ended = || anyhow::anyhow!("the subscription ended before all events were shown");
    let (mut answered, mut quiet) = (false, QUIET);
    loop {
        match tokio::time::timeout(quiet, subscription.next()).await {
            Ok(Some(delivery)) => return Ok(Some(delivery)),
            Ok(None) => return Err(ended()),
            Err(_) if answered && *health.borrow() == Health::Live => return Ok(None),
            Err(_) => {}
        }
        // A stopped or distant server answers late or never; then the lack of deliveries does not mean the end.
        let live = tokio::time::timeout(PATIENCE, health.wait_for(|now| *now == Health::Live)).await;
        live.context("the bus is not reachable; events may be missing")?.map_err(|_| ended())?;
        let latency = bus.admin().ping().await.context("the bus does not answer; events may be missing")?;
        if latency > QUIET / 4 {
            quiet = QUIET_AFTER_DELAY;
        }
        answered = true;
    }
}
