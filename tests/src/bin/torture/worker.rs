//! A worker: one member of one group, as a service with a typed handler.

use crate::Result;
use crate::ledger::Ledger;
use crate::options::Work;
use crate::work::{ATTEMPTS, Kind, LEASE, LONG, Step};
use event_client::service::{Attempt, Handler, Msg, RetryPolicy, Service, State};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// Works until SIGTERM.
pub(crate) async fn run(role: &Work) -> Result<()> {
    let bus = crate::team::connect(&role.url).await?;
    let ledger = Arc::new(Ledger::open(&role.ledger)?);
    let retry =
        RetryPolicy::attempts(ATTEMPTS).backoff(Duration::from_millis(50), Duration::from_millis(400));
    let handler = handle.group(&*role.group).concurrency(role.concurrency).lease(LEASE).retry(retry);
    let handler = if role.keyed { handler.keyed() } else { handler };
    let mut terminate = signal(SignalKind::terminate())?;
    let service = Service::new("torture").bus(bus.clone()).on(handler).with_state(ledger);
    service
        .run_until(async move {
            let _ = terminate.recv().await;
        })
        .await?;
    bus.close().await?;
    Ok(())
}

async fn handle(State(ledger): State<Arc<Ledger>>, attempt: Attempt, Msg(step): Msg<Step>) -> Result<()> {
    let about = format!("{} {} {}", step.lane, step.number, attempt.number());
    match step.kind {
        Kind::Quick => {}
        Kind::Long => tokio::time::sleep(LONG).await,
        Kind::Poison => {
            ledger.write(&format!("failed {about}"))?;
            return Err("poison".into());
        }
    }
    ledger.write(&format!("handled {about}"))?;
    Ok(())
}
