//! Handles events in order for each key, also when one of them fails and is tried again.
//!
//! ```console
//! $ cargo run -p event-client --example keyed
//! $ cargo run -p event-client --example keyed -- redis://localhost:6379
//! ```
//!
//! Without an argument the bus is in the memory of this program.

use std::collections::BTreeMap;
use std::time::Duration;

use event_client::service::{Attempt, Handler, Msg, RetryPolicy, Service, State};
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Events with the same key are handled in the order of publication: here the changes of one account.
#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "accounts.changed", version = 1, key = account)]
struct AccountChanged {
    account: String,
    change: u32,
}

async fn apply(
    State(applied): State<mpsc::UnboundedSender<AccountChanged>>,
    attempt: Attempt,
    Msg(event): Msg<AccountChanged>,
) -> Result<(), Error> {
    if event.account == "anna" && event.change == 1 && attempt.number() == 1 {
        return Err("the database is busy".into()); // anna's changes 2 to 4 wait, the other accounts do not
    }
    applied.send(event)?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let (applied, mut all_applied) = mpsc::unbounded_channel();

    // Eight events at a time, but never two of the same key.
    let retry = RetryPolicy::attempts(5).backoff(Duration::from_millis(100), Duration::from_secs(1));
    let apply = apply.concurrency(8).keyed().retry(retry);
    let ledger = Service::new("ledger").bus(bus.clone()).on(apply).with_state(applied).start().await?;

    for change in 1..=4 {
        for account in ["anna", "ben", "carla"] {
            bus.publish(AccountChanged { account: account.to_owned(), change }).await?;
        }
    }

    let mut changes: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for _ in 0..12 {
        let event = all_applied.recv().await.ok_or("the ledger stopped")?;
        changes.entry(event.account).or_default().push(event.change);
    }
    assert!(changes.values().all(|changes| *changes == [1, 2, 3, 4]));
    println!("in order for each account: {changes:?}");

    ledger.drain().await?;
    Ok(bus.close().await?)
}
