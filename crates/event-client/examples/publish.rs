//! Publishes events: one event, one event with options, one event twice, and many events at once.
//!
//! ```console
//! $ cargo run -p event-client --example publish
//! $ cargo run -p event-client --example publish -- nats://localhost:4222
//! ```
//!
//! Without an argument the bus is in the memory of this program.

use std::time::Duration;

use event_client::message::MessageId;
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
struct OrderPlaced {
    order_id: u64,
    cents: i64,
}

#[tokio::main]
async fn main() -> event_client::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;

    // The `.await` returns when the bus has stored the event.
    bus.publish(OrderPlaced { order_id: 101, cents: 1200 }).await?;

    // Options are methods before the `.await`. This event is delivered after five seconds.
    let later = Duration::from_secs(5);
    bus.publish(OrderPlaced { order_id: 102, cents: 800 }).delay(later).header("tenant", "acme").await?;

    // A publish that failed with a timeout may have been stored. With the same id and `dedup()` it can be repeated:
    // the bus stores the event once. RabbitMQ has no deduplication and refuses `dedup()`.
    if !bus.capabilities().dedup_window.is_zero() {
        let id = MessageId::now();
        let first = bus.publish(OrderPlaced { order_id: 103, cents: 300 }).id(id.clone()).dedup().await?;
        let second = bus.publish(OrderPlaced { order_id: 103, cents: 300 }).id(id).dedup().await?;
        assert!(!first.duplicate && second.duplicate);
    }

    // Many events are sent together and confirmed together. That is much faster than one `.await` for each event.
    let orders = (104..204).map(|order_id| OrderPlaced { order_id, cents: 500 });
    let receipts = bus.publish_all(orders).await?;

    println!("published on {}: 3 single events and {} together", bus.capabilities().name, receipts.len());
    bus.close().await
}
