//! Handles events: a handler fails once, is tried again, and emits the next event.
//!
//! ```console
//! $ cargo run -p event-client --example handle
//! $ cargo run -p event-client --example handle -- sqlite:bus.db
//! ```
//!
//! Without an argument the bus is in the memory of this program.

use std::time::Duration;

use event_client::service::{Attempt, Emitter, Handler, Msg, RetryPolicy, Service, State};
use event_client::{Bus, Event};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.placed", version = 1, key = order_id)]
struct OrderPlaced {
    order_id: u64,
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "orders.paid", version = 1, key = order_id)]
struct OrderPaid {
    order_id: u64,
    attempts: u32,
}

/// A handler is an async function. The type of the last argument selects the event. When the function returns an
/// error, the event is delivered again later. After the last attempt it becomes a dead letter.
async fn charge(attempt: Attempt, out: Emitter, Msg(order): Msg<OrderPlaced>) -> Result<(), Error> {
    if attempt.number() == 1 {
        return Err("the bank does not answer".into());
    }
    out.emit(OrderPaid { order_id: order.order_id, attempts: attempt.number() }).await?;
    Ok(())
}

/// `State` is the value that was passed to `with_state`. Here it is a channel to `main`.
async fn thank(State(paid): State<mpsc::UnboundedSender<OrderPaid>>, Msg(order): Msg<OrderPaid>) {
    let _ = paid.send(order);
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let (paid, mut all_paid) = mpsc::unbounded_channel();

    // Each handler has a durable group: `billing.orders.placed` and `mail.orders.paid`. When `start` returns, the group
    // exists, and the bus keeps every new event for it.
    let retry = RetryPolicy::attempts(5).backoff(Duration::from_millis(100), Duration::from_secs(1));
    let billing =
        Service::new("billing").bus(bus.clone()).on(charge.concurrency(32).retry(retry)).start().await?;
    let mail = Service::new("mail").bus(bus.clone()).on(thank).with_state(paid).start().await?;

    bus.publish(OrderPlaced { order_id: 7 }).await?;
    let order = all_paid.recv().await.ok_or("the mail service stopped")?;
    println!("order {} is paid after {} attempts", order.order_id, order.attempts);

    // `drain` waits for running handlers. A program that runs until a signal calls `run_until` instead of `start`.
    billing.drain().await?;
    mail.drain().await?;
    Ok(bus.close().await?)
}
