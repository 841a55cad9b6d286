//! Receives a reply in chunks, and stops the service's work by dropping the stream.
//!
//! ```console
//! $ cargo run -p event-client --example stream
//! $ cargo run -p event-client --example stream -- sqlite:bus.db
//! ```
//!
//! Without an argument the bus is in the memory of this program.

use event_client::service::{ReplySink, Req, Service};
use event_client::{Bus, Request};
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// `stream` means that the reply consists of chunks. `reply` is the type of one chunk.
#[derive(Request, Serialize, Deserialize)]
#[request(name = "counter.count", reply = u64, stream)]
struct Count {
    to: u64,
}

/// Each `send` waits until the bus has taken the chunk, so a slow caller slows this function. `Ok(())` ends the
/// reply. When the caller drops the stream, this function is dropped at its `.await`.
async fn count(out: ReplySink<Count>, Req(asked): Req<Count>) -> Result<(), event_client::Error> {
    for number in 1..=asked.to {
        out.send(number).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let counter = Service::new("counter").bus(bus.clone()).reply(count).start().await?;

    // A complete reply. The stream ends after the last chunk.
    let mut chunks = bus.request(Count { to: 5 }).stream().await?;
    let mut numbers = Vec::new();
    while let Some(number) = chunks.try_next().await? {
        numbers.push(number);
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    println!("received {numbers:?}");

    // The first chunk of a very long reply.
    let mut chunks = bus.request(Count { to: u64::MAX }).stream().await?;
    let first = chunks.try_next().await?;
    drop(chunks); // the service stops counting
    println!("received {first:?} and dropped the rest");

    counter.drain().await?;
    Ok(bus.close().await?)
}
