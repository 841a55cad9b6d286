//! `backbone sub` and `backbone tail`: events as they come.

use std::io::Write;

use event_client::subject::{Group, Pattern};
use event_client::transport::{self, Start};
use serde_json::json;

use super::{connect, interrupted, show};
use crate::args::{Global, Subscribe, Tail};
use crate::output::Output;

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
    let subscription = bus.subscribe(spec).await?;
    if !output.is_json() {
        eprintln!("{}", output.dim(&format!("receiving {} (Ctrl-C ends it)", patterns.join(" "))));
    }
    let mut left = limit.unwrap_or(u64::MAX);
    let mut stop = std::pin::pin!(interrupted());
    while left > 0 {
        let delivery = tokio::select! {
            delivery = subscription.next() => delivery,
            () = &mut stop => break,
        };
        let Some(delivery) = delivery else { break };
        let info = delivery.info();
        let mut extra =
            vec![("position", info.position.map(|position| json!(position.to_string())).unwrap_or_default())];
        if group.is_some() && info.attempt > 1 {
            extra.push(("attempt", json!(info.attempt)));
        }
        // Printed first, acknowledged after: what the reader has not seen comes again.
        show::message(output, delivery.message(), &extra)?;
        std::io::stdout().flush()?;
        delivery.ack().await?;
        left -= 1;
    }
    subscription.stop();
    Ok(bus.close().await?)
}
