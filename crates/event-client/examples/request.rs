//! Sends requests: before the service runs, then for a value, then for an error of the request's own type.
//!
//! ```console
//! $ cargo run -p event-client --example request
//! $ cargo run -p event-client --example request -- nats://localhost:4222
//! ```
//!
//! Without an argument the bus is in the memory of this program.

use std::time::Duration;

use event_client::request::{CallError, ReplyError};
use event_client::service::{Req, Service};
use event_client::status::Code;
use event_client::{Bus, Request};
use serde::{Deserialize, Serialize};

/// `idempotent` means that sending the request twice does no harm, so a retry layer may send it again.
#[derive(Request, Serialize, Deserialize)]
#[request(name = "pricing.get-quote", reply = Quote, error = NotSold, idempotent)]
struct GetQuote {
    sku: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Quote {
    cents: i64,
}

#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{sku} is not sold here")]
struct NotSold {
    sku: String,
}

impl ReplyError for NotSold {
    fn code(&self) -> Code {
        Code::NotFound
    }
}

async fn quote(Req(asked): Req<GetQuote>) -> Result<Quote, NotSold> {
    if asked.sku == "tea" { Ok(Quote { cents: 250 }) } else { Err(NotSold { sku: asked.sku }) }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let bus = Bus::connect(&url).await?;
    let ask = |sku: &str| bus.request(GetQuote { sku: sku.to_owned() }).timeout(Duration::from_secs(2));

    // Without a running service the call fails at once; it does not wait for the timeout.
    match ask("tea").await {
        Err(error @ CallError::NoResponder { .. }) => println!("{error}"),
        other => panic!("expected NoResponder, got {other:?}"),
    }

    let pricing = Service::new("pricing").bus(bus.clone()).reply(quote).start().await?;
    println!("tea costs {} cents", ask("tea").await?.cents);

    // An error of the request's own type reaches the caller as a value.
    match ask("gold").await {
        Err(CallError::Remote(NotSold { sku })) => println!("not sold: {sku}"),
        other => panic!("expected NotSold, got {other:?}"),
    }

    pricing.drain().await?;
    Ok(bus.close().await?)
}
