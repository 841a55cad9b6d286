//! Runs the exam on a transport that is outside of `event-client`: it depends on the contract alone, and a program adds
//! it by registering its scheme. It stores everything in a bus in memory.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_conformance::{Fixture, Settings, Storage};
use event_transport::confirm::Confirm;
use event_transport::message::Message;
use event_transport::subscription::Subscription;
use event_transport::url::BusUrl;
use event_transport::{
    Admin, Capabilities, MemoryTransport, Receipt, Requests, Result, Subscribe, Transport,
};
use futures_util::future::BoxFuture;

/// The scheme of its URLs: `outside:NAME`.
const SCHEME: &str = "outside";

/// A transport as another crate would have it, with a name and options of its own.
struct Outside {
    capabilities: Capabilities,
    store: MemoryTransport,
}

impl Outside {
    /// Opens `outside:NAME`; `remembered` is the time for which a dedup id is kept, `kept` the number of messages.
    async fn open(mut url: BusUrl) -> Result<Self> {
        let mut options = Vec::new();
        for (option, takes, inner) in [
            ("remembered", "a duration such as 500ms", "dedup_window"),
            ("kept", "a number of messages", "max_messages"),
            ("provision", "off, verify, create or update", "provision"),
        ] {
            if let Some(value) = url.take::<String>(option, takes)? {
                options.push(format!("{inner}={value}"));
            }
        }
        url.finish()?;
        let inner = format!("memory:outside-{}?{}", url.rest(), options.join("&"));
        let store = MemoryTransport::open(inner.parse()?)?;
        let mut capabilities = store.capabilities().clone();
        capabilities.name = SCHEME;
        Ok(Self { capabilities, store })
    }
}

impl Transport for Outside {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn publish(&self, message: Message) -> Confirm<Receipt> {
        if let Err(refused) = self.capabilities.check(&message) {
            return Confirm::ready(Err(refused.during("publish")));
        }
        self.store.publish(message)
    }

    fn subscribe(&self, spec: Subscribe) -> BoxFuture<'_, Result<Subscription>> {
        self.store.subscribe(spec)
    }

    fn requests(&self) -> &dyn Requests {
        self.store.requests()
    }

    fn admin(&self) -> &dyn Admin {
        self.store.admin()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.store.close()
    }
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Adds the scheme to this program, as the `main` of a service does.
pub(crate) fn register() {
    let connect =
        |url| async { Outside::open(url).await.map(|outside| Arc::new(outside) as Arc<dyn Transport>) };
    event_client::transport::register(SCHEME, connect).expect("the scheme is free");
}

/// The fixture: `outside:NAME`, with a name for each case.
pub(crate) struct OutsideTransport;

impl Fixture for OutsideTransport {
    fn name(&self) -> &str {
        SCHEME
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut url = format!("{SCHEME}:exam-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if let Some(window) = settings.dedup_window {
            url += &format!("?remembered={}ms", window.as_millis());
        }
        if settings.few_kept {
            url += "?kept=64";
        }
        Ok(Storage::new(url, ()))
    }

    fn program(&self) -> Option<PathBuf> {
        None
    }
}
