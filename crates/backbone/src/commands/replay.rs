//! `backbone replay`: a stretch of the past on the screen, or to one group again.

use anyhow::bail;
use event_client::subject::{Group, Pattern};
use event_client::transport::{Start, Subscribe};
use jiff::Timestamp;
use serde_json::json;

use super::{connect, show};
use crate::args::{Global, Replay};
use crate::output::Output;

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
    // The log has no end marker. What is stored already comes at once, so a pause means that it is all here.
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_millis(500), subscription.next()).await;
        let Ok(Some(delivery)) = next else { break };
        if delivery.info().published_at.is_some_and(|at| at > to) {
            break;
        }
        let position = delivery.info().position.map(|position| json!(position.to_string()));
        show::message(output, delivery.message(), &[("position", position.unwrap_or_default())])?;
    }
    subscription.stop();
    Ok(bus.close().await?)
}
