//! A publisher: each of its lanes publishes its next step until it is confirmed, repeatedly.

use crate::Result;
use crate::ledger::{Ledger, Published, published};
use crate::options::Publish;
use crate::work::{Step, kind};
use event_client::{Bus, ErrorKind};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Publishes until SIGTERM, then ends when every step that it began is confirmed.
pub(crate) async fn run(role: &Publish) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    // A predecessor that was killed may have begun a step that is not confirmed: each lane continues there.
    let mut next: HashMap<String, u64> = HashMap::new();
    for line in published(&role.ledger)? {
        match line {
            Published::Begun(lane, number) => drop(next.insert(lane, number)),
            Published::Confirmed(lane, number) => drop(next.insert(lane, number + 1)),
            Published::Strange(_) => {}
        }
    }
    let bus = crate::team::connect(&role.url).await?;
    let ledger = Arc::new(Ledger::open(&role.ledger)?);
    let (stop, stopped) = watch::channel(false);
    let mut lanes = JoinSet::new();
    for lane in 0..role.lanes {
        let lane = format!("{}-{lane}", role.number);
        let next = next.get(&lane).copied().unwrap_or(0);
        let (bus, ledger, stopped) = (bus.clone(), ledger.clone(), stopped.clone());
        let (seed, pause) = (role.seed, Duration::from_millis(role.pause));
        lanes.spawn(async move { along(&bus, &ledger, lane, next, seed, pause, stopped).await });
    }
    tokio::select! {
        _ = terminate.recv() => { let _ = stop.send(true); }
        Some(ended) = lanes.join_next() => ended?.map_err(|e| format!("a lane cannot write its ledger: {e}"))?,
    }
    while let Some(ended) = lanes.join_next().await {
        ended??;
    }
    bus.close().await?;
    Ok(())
}

async fn along(
    bus: &Bus,
    ledger: &Ledger,
    lane: String,
    mut number: u64,
    seed: u64,
    pause: Duration,
    stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    while !*stopped.borrow() {
        let step = Step { lane: lane.clone(), number, kind: kind(seed, &lane, number) };
        ledger.write(&format!("begun {lane} {number}"))?;
        // The same id on each try: a transport with dedup stores the step once.
        while let Err(error) = bus.publish(step.clone()).id(format!("{lane}-{number}")).await {
            let expected =
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Full);
            if !expected {
                ledger.write(&format!("strange {lane}/{number}: {error:?}").replace('\n', " "))?;
            }
            sleep(Duration::from_millis(50)).await;
        }
        ledger.write(&format!("confirmed {lane} {number}"))?;
        number += 1;
        sleep(pause).await;
    }
    Ok(())
}
