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
#[event(name = "temperatures.read", version = 1, key = sensor)]
struct TemperatureRead {
    sensor: u64,
    celsius: f64,
}

#[tokio::main]
async fn main() -> event_client::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;

    // The `.await` returns when the bus has stored the event.
    bus.publish(TemperatureRead { sensor: 1, celsius: 20.5 }).await?;

    // Options are methods before the `.await`. This event is delivered after five seconds.
    let later = Duration::from_secs(5);
    bus.publish(TemperatureRead { sensor: 2, celsius: 18.0 }).delay(later).header("tenant", "acme").await?;

    // A publish that failed with a timeout may have been stored. With the same id and `dedup()` it can be repeated:
    // the bus stores the event once. RabbitMQ has no deduplication and refuses `dedup()`.
    if !bus.capabilities().dedup_window.is_zero() {
        let id = MessageId::now();
        let first = bus.publish(TemperatureRead { sensor: 3, celsius: 21.0 }).id(id.clone()).dedup().await?;
        let second = bus.publish(TemperatureRead { sensor: 3, celsius: 21.0 }).id(id).dedup().await?;
        assert!(!first.duplicate && second.duplicate);
    }

    // Many events are sent together and confirmed together. That is much faster than one `.await` for each event.
    let readings = (1..=100).map(|sensor| TemperatureRead { sensor, celsius: 19.5 });
    let receipts = bus.publish_all(readings).await?;

    println!("published on {}: 3 single events and {} together", bus.capabilities().name, receipts.len());
    bus.close().await
}
