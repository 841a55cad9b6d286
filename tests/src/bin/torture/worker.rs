//! A worker: one member of one group, as a service with a typed handler.

use crate::Result;
use crate::ledger::Ledger;
use crate::options::Work;
use crate::work::{ATTEMPTS, Kind, LEASE, LONG, Step};
use event_client::ErrorKind;
use event_client::service::{Attempt, Handler, Msg, RetryPolicy, Service, State};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

/// How long a worker may take to start.
const STARTED: Duration = Duration::from_secs(300);

/// Handles steps until SIGTERM.
pub(crate) async fn run(role: &Work) -> Result<()> {
    // The handler is installed before anything that takes time: SIGTERM in the meantime must not just kill
    // the process.
    let mut terminate = signal(SignalKind::terminate())?;
    let bus = crate::team::connect(&role.url).await?;
    let ledger = Arc::new(Ledger::open(&role.ledger)?);
    let retry =
        RetryPolicy::attempts(ATTEMPTS).backoff(Duration::from_millis(50), Duration::from_millis(400));
    let end = Instant::now() + STARTED;
    loop {
        let handler = handle.group(&*role.group).concurrency(role.concurrency).lease(LEASE).retry(retry);
        let handler = if role.keyed { handler.keyed() } else { handler };
        let service = Service::new("torture").bus(bus.clone()).on(handler).with_state(ledger.clone());
        let mut asked = false;
        let until = async {
            let _ = terminate.recv().await;
            asked = true;
        };
        let ended = service.run_until(until).await;
        match ended {
            // Started in the middle of a fault: retry, as a supervisor does with a service that cannot start.
            Err(error) if !asked && passing(&error) && Instant::now() < end => {
                sleep(Duration::from_millis(100)).await
            }
            // Stopped in the middle of a fault: unconfirmed messages are delivered again, and the checker
            // counts them.
            Err(error) if asked && passing(&error) => break eprintln!("stopped: {error}"),
            ended => break ended?,
        }
    }
    bus.close().await?;
    Ok(())
}

fn passing(error: &event_client::Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

async fn handle(State(ledger): State<Arc<Ledger>>, attempt: Attempt, Msg(step): Msg<Step>) -> Result<()> {
    let about = format!("{} {} {}", step.lane, step.number, attempt.number());
    match step.kind {
        Kind::Quick => {}
        Kind::Long => sleep(LONG).await,
        Kind::Poison => {
            ledger.write(&format!("failed {about}"))?;
            return Err("poison".into());
        }
    }
    ledger.write(&format!("handled {about}"))?;
    Ok(())
}
