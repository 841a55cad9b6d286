//! Sends the `tracing` events of a program over the bus, and prints the records that arrive.
//!
//! ```console
//! $ cargo run -p event-client --example log_shipping
//! $ cargo run -p event-client --example log_shipping -- sqlite:backbone-data/bus.db
//! ```
//!
//! Without an argument the bus is in the memory of this program. On the bus of `backbone up` the records also appear in
//! the log viewer.

use std::time::Duration;

use event_client::Bus;
use event_client::log::{self, LogBatch};
use event_client::service::{Handler, Msg, Service, State};
use tokio::sync::mpsc;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Log records travel in batches, which are events like any other.
async fn collect(State(batches): State<mpsc::UnboundedSender<LogBatch>>, Msg(batch): Msg<LogBatch>) {
    let _ = batches.send(batch);
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Always set a level: the client of a broker logs each publish at `TRACE`, and shipping that record is a publish.
    // Logging starts before the bus is connected. The records wait in a bounded queue until the shipper starts.
    let (layer, shipper) = log::shipping("billing");
    tracing_subscriber::registry().with(layer).with(LevelFilter::INFO).init();

    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let (batches, mut all_batches) = mpsc::unbounded_channel();
    // A broadcast handler receives every batch from now on. It has no durable group.
    let collector = Service::new("collector").bus(bus.clone()).on(collect.broadcast()).with_state(batches);
    let collector = collector.start().await?;

    let shipping = shipper.start(bus.clone());
    tracing::warn!(order = 17, "card refused");

    // Close the shipper after the last log line and before the bus. `true` means that all records were sent.
    assert!(shipping.close(Duration::from_secs(5)).await);

    'search: while let Some(batch) = all_batches.recv().await {
        for record in batch.into_records() {
            if record.message == "card refused" {
                println!("{} {}: {} {:?}", record.level, record.service, record.message, record.attributes);
                break 'search;
            }
        }
    }
    collector.drain().await?;
    Ok(bus.close().await?)
}
