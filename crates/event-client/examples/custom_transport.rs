//! Connects a bus to a transport of your own: here a wrapper that counts publishes and calls another transport.
//!
//! ```console
//! $ cargo run -p event-client --example custom_transport
//! $ cargo run -p event-client --example custom_transport -- redis://localhost:6379
//! ```
//!
//! Without an argument the inner transport is in the memory of this program. A transport for another broker implements
//! the same trait; the crate `event-conformance` tests whether it fulfils the contract.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::bus::Settings;
use event_client::confirm::Confirm;
use event_client::message::Message;
use event_client::subscription::Subscription;
use event_client::transport::{self, Admin, Capabilities, Receipt, Requests, Subscribe, Transport};
use event_client::{Bus, Event, Result};
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Transport>,
    published: AtomicU64,
}

impl Transport for Counting {
    fn publish(&self, message: Message) -> Confirm<Receipt> {
        self.published.fetch_add(1, Ordering::Relaxed);
        self.inner.publish(message)
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        self.inner.subscribe(spec)
    }

    fn requests(&self) -> &dyn Requests {
        self.inner.requests()
    }

    fn admin(&self) -> &dyn Admin {
        self.inner.admin()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.inner.close()
    }
}

#[derive(Event, Serialize, Deserialize, JsonSchema)]
#[event(name = "doors.opened", version = 1)]
struct DoorOpened {
    door: u32,
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    let inner = transport::open(url.parse()?).await?;
    let counting = Arc::new(Counting { inner, published: AtomicU64::new(0) });

    let bus = Bus::with_transport(counting.clone(), Settings::default())?;
    bus.publish_all((1..=3).map(|door| DoorOpened { door })).await?;
    assert_eq!(counting.published.load(Ordering::Relaxed), 3);
    println!("counted {} publishes", counting.published.load(Ordering::Relaxed));
    bus.close().await
}
