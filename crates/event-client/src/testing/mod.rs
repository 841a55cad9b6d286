//! `TestBus`: runs a service on its own bus in memory, with a clock that advances instead of waiting.
//!
//! ```
//! use event_client::service::OutcomeKind::{Ack, Retry};
//! use event_client::service::{Attempt, Emitter, Msg, Outcome, Service};
//! use event_client::testing::TestBus;
//! # use event_client::{Event, event::JsonSchema};
//! # use serde::{Deserialize, Serialize};
//! # #[derive(Event, Serialize, Deserialize, JsonSchema)]
//! # #[event(name = "orders.placed", version = 1)]
//! # struct OrderPlaced { order_id: u64 }
//! # #[derive(Event, Serialize, Deserialize, JsonSchema, Debug, PartialEq)]
//! # #[event(name = "orders.paid", version = 1)]
//! # struct OrderPaid { order_id: u64 }
//!
//! async fn charge(attempt: Attempt, out: Emitter, Msg(order): Msg<OrderPlaced>) -> Outcome {
//!     if attempt.number() == 1 {
//!         return Outcome::retry("the bank is down");
//!     }
//!     match out.emit(OrderPaid { order_id: order.order_id }).await {
//!         Ok(_) => Outcome::Ack,
//!         Err(error) => error.into(),
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let t = TestBus::start(Service::new("billing").on(charge)).await; // inside #[tokio::test]
//! t.publish(OrderPlaced { order_id: 7 }).await.until_idle().await; // the second of backoff takes no time
//! assert_eq!(t.handler("billing.orders.placed").outcomes(), [Retry, Ack]);
//! assert_eq!(t.emitted::<OrderPaid>().once(), OrderPaid { order_id: 7 });
//! assert!(t.dead_letters().await.is_empty());
//! # }
//! ```

mod record;
mod watched;

use std::fmt;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

pub use event_transport::tasks::{kill, tasks};
use record::Records;
pub use record::{Attempted, Emitted, Handled};
use watched::Watched;

use crate::bus::{Bus, Settings};
use crate::event::Event;
use crate::service::{Running, Service};
use crate::transport::{DeadLetter, DeadLetterFilter, MemoryConfig, MemoryTransport};
use event_transport::bounds;
use event_transport::error::Result;

/// The longest time that [`TestBus::until_idle`] waits on a paused clock: far longer than any sum of backoffs.
const PAUSED_BOUND: Duration = Duration::from_secs(7 * 24 * 3600);
/// The same on a running clock.
const REAL_BOUND: Duration = Duration::from_secs(30);

/// One service on a private bus in memory, whose work is recorded.
///
/// Its methods panic with an explanation instead of returning errors, because they are assertions.
pub struct TestBus {
    memory: Arc<MemoryTransport>,
    bus: Bus,
    records: Arc<Records>,
    running: Option<Running>,
    bound: Duration,
}

impl TestBus {
    /// Starts `service` with the clock paused: whenever all tasks wait, the clock advances to the next timer, so
    /// backoffs, delays and timeouts take no real time.
    ///
    /// Real I/O of a handler (a database, a socket) is not a timer: while the handler waits for it, the clock would
    /// advance past the handler's timeouts. Use [`TestBus::real_time`] for such services.
    ///
    /// # Panics
    /// When the service cannot start, or outside of tokio's current-thread runtime, which `#[tokio::test]` uses.
    pub async fn start(service: Service) -> Self {
        use tokio::runtime::{Handle, RuntimeFlavor};
        assert!(
            matches!(Handle::current().runtime_flavor(), RuntimeFlavor::CurrentThread),
            "TestBus::start pauses the clock, which only the current-thread runtime of a plain #[tokio::test] can; \
             use it, or TestBus::real_time"
        );
        if !is_paused() {
            tokio::time::pause();
        }
        Self::open(service, PAUSED_BOUND).await
    }

    /// Starts `service` on the running clock, for handlers that do real I/O. Give them short backoffs.
    ///
    /// # Panics
    /// When the service cannot start.
    pub async fn real_time(service: Service) -> Self {
        Self::open(service, REAL_BOUND).await
    }

    async fn open(service: Service, bound: Duration) -> Self {
        let memory =
            Arc::new(MemoryTransport::private(MemoryConfig::default()).expect("the defaults are valid"));
        let records = Arc::new(Records::default());
        let settings = Settings { source: "/test".into(), ..Settings::default() };
        let bus = Watched::bus(memory.clone(), records.clone(), false, settings);
        let mut test = Self { memory, bus, records, running: None, bound };
        if let Err(error) = test.run(service).await {
            panic!("the service under test does not start: {error}");
        }
        test
    }

    async fn run(&mut self, service: Service) -> Result<()> {
        let bus = Watched::bus(self.memory.clone(), self.records.clone(), true, Settings::default());
        self.running = Some(service.bus(bus).observe(self.records.clone()).start().await?);
        Ok(())
    }

    /// Returns the test's own connection to the bus: events published through it do not count as
    /// [emitted](TestBus::emitted).
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Returns the running service, for its counts and its health.
    ///
    /// # Panics
    /// After [`TestBus::stop`].
    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("the service was stopped; start one with `restart`")
    }

    /// Publishes an event; use [`TestBus::bus`] for a publish with options.
    ///
    /// # Panics
    /// When the event is refused.
    pub async fn publish<E: Event>(&self, event: E) -> &Self {
        if let Err(error) = self.bus.publish(event).await {
            panic!("the test's event was refused: {error}");
        }
        self
    }

    /// Waits until no work is left: every group has settled all messages that it received, including retries and
    /// delayed messages, and every broadcast was handled.
    ///
    /// # Panics
    /// When work is left after a week of paused time, or after 30 s on a running clock; the message names the groups
    /// and their unsettled messages.
    pub async fn until_idle(&self) -> &Self {
        let deadline = bounds::from_now(self.bound);
        let mut look_again = Duration::from_millis(1);
        loop {
            let changed = self.records.changed();
            let Some(left) = self.unsettled().await else { return self };
            let now = Instant::now();
            assert!(now < deadline, "not settled after {:?}: {left}", self.bound);
            // A message that ends without a settlement, such as by expiry, gives no signal: check again, at growing
            // intervals.
            let due = self.records.due().filter(|due| *due > now).unwrap_or(deadline);
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(due.min(now + look_again).min(deadline)) => {
                    look_again = (look_again * 2).min(Duration::from_secs(60));
                }
            }
        }
    }

    /// Describes the work that is left.
    async fn unsettled(&self) -> Option<String> {
        let mut left = String::new();
        let mine = self.running.as_ref().map(Running::counts).unwrap_or_default();
        let groups = self
            .bus
            .admin()
            .groups()
            .await
            .unwrap_or_else(|error| panic!("cannot read the state of the groups: {error}"));
        for group in groups.iter().filter(|group| mine.contains_key(group.group.as_str())) {
            if group.waiting + group.in_flight > 0 {
                let _ = write!(
                    left,
                    "`{}` has {} waiting ({} of them for a retry) and {} being handled; ",
                    group.group, group.waiting, group.retrying, group.in_flight
                );
            }
        }
        if self.records.due().is_some_and(|due| due > Instant::now()) {
            left.push_str("a delayed message is not due yet; ");
        }
        match self.records.unheard() {
            0 => {}
            count => {
                let _ = write!(left, "{count} broadcasts are being handled; ");
            }
        }
        if left.is_empty() { None } else { Some(left.trim_end_matches("; ").to_owned()) }
    }

    /// Returns the attempts of one handler so far, by its group: `<service>.<event>` unless it has another name.
    ///
    /// # Panics
    /// When the service has no such group; the message names the groups that it has.
    pub fn handler(&self, group: &str) -> Handled {
        let handled = self.records.handled(group);
        let groups: Vec<_> = self.running.iter().flat_map(|running| running.counts().into_keys()).collect();
        assert!(
            !handled.attempts().is_empty() || groups.iter().any(|known| known == group),
            "no handler in group `{group}`; the service has {groups:?}"
        );
        handled
    }

    /// Returns the events of one type that the service has published so far, in order, in any version that `E` can
    /// read.
    ///
    /// # Panics
    /// When one of them does not decode.
    pub fn emitted<E: Event>(&self) -> Emitted<E> {
        self.records.emitted()
    }

    /// Returns all dead letters, oldest first.
    pub async fn dead_letters(&self) -> Vec<DeadLetter> {
        self.bus
            .admin()
            .dead_letters(DeadLetterFilter::default())
            .await
            .unwrap_or_else(|error| panic!("cannot list the dead letters: {error}"))
    }

    /// Sends all dead letters back to the groups that failed on them; returns their number.
    pub async fn replay_dead_letters(&self) -> u64 {
        self.bus
            .admin()
            .replay_dead_letters(DeadLetterFilter::default())
            .await
            .unwrap_or_else(|error| panic!("cannot replay the dead letters: {error}"))
    }

    /// Drains the service, as a shutdown would. Its groups stay on the bus.
    ///
    /// # Errors
    /// The errors of [`Running::drain`].
    pub async fn stop(&mut self) -> Result<()> {
        match self.running.take() {
            Some(running) => running.drain().await,
            None => Ok(()),
        }
    }

    /// Drains the service and starts another one on the same bus, as an upgrade would. The records of both are kept
    /// together.
    ///
    /// # Errors
    /// When draining had to abandon work, or the new service does not start.
    pub async fn restart(&mut self, service: Service) -> Result<()> {
        self.stop().await?;
        self.run(service).await
    }
}

/// Whether tokio's clock is paused; tokio has no method that reports it.
fn is_paused() -> bool {
    let (real, tokio) = (std::time::Instant::now(), Instant::now());
    while real.elapsed() < Duration::from_micros(50) {
        std::hint::spin_loop();
    }
    tokio.elapsed().is_zero()
}

impl fmt::Debug for TestBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestBus").field("running", &self.running).finish_non_exhaustive()
    }
}
