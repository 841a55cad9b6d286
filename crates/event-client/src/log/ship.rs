//! The shipper: takes batches from the queue and publishes each batch until it is stored.

use std::future::IntoFuture as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::layer::{ShippingLayer, unshipped};
use super::queue::Queue;
use super::record::{LogBatch, LogRecord};
use crate::bus::Bus;
use crate::message::MessageId;
use event_transport::backoff::Backoff;
use event_transport::error::{Error, ErrorKind};
use event_transport::supervise;

/// The longest time that a record waits for other records of its batch.
const LINGER: Duration = Duration::from_millis(200);
/// The waits between attempts.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
/// The longest time for one publish.
const DEADLINE: Duration = Duration::from_secs(30);

/// Creates a layer for the subscriber and the shipper that sends its records. Records wait in the queue until the
/// shipper starts, so that logging can begin before the bus is connected.
pub fn shipping(service: impl Into<String>) -> (ShippingLayer, Shipper) {
    let queue = Arc::new(Queue::default());
    (ShippingLayer { queue: Arc::clone(&queue) }, Shipper { queue, service: service.into() })
}

/// A shipper that has not started.
#[derive(Debug)]
pub struct Shipper {
    queue: Arc<Queue>,
    service: String,
}

impl Shipper {
    /// Starts to ship, as a task of the current runtime.
    pub fn start(self, bus: Bus) -> Shipping {
        let closing = CancellationToken::new();
        let stats = Arc::new(ShippingStats::default());
        let (queue, service, counting) = (self.queue, self.service, Arc::clone(&stats));
        let work = Arc::new(Work { queue, service, bus, closing: closing.clone(), stats: counting });
        let shipping = supervise::again("log shipping", move || work.clone().run());
        Shipping { closing, stats, task: tokio::spawn(unshipped(shipping)) }
    }
}

/// The counts of a shipper since it started.
#[derive(Debug, Default)]
pub struct ShippingStats {
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl ShippingStats {
    /// Returns the number of records that the bus has stored.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the number of dropped records, as far as the batches sent have reported them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn count(&self, batch: &LogBatch) {
        self.sent.fetch_add(batch.records.len() as u64, Ordering::Relaxed);
        let dropped = batch.dropped.iter().map(|dropped| dropped.count).sum();
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }
}

/// A running shipper. Dropping this value does not stop it; [`close`](Self::close) does.
#[derive(Debug)]
pub struct Shipping {
    closing: CancellationToken,
    stats: Arc<ShippingStats>,
    task: JoinHandle<()>,
}

impl Shipping {
    /// Returns the counts of the shipper; they stay readable after it has ended.
    pub fn stats(&self) -> Arc<ShippingStats> {
        Arc::clone(&self.stats)
    }

    /// Ships the waiting records and ends, within `bound`. Returns whether all records were shipped. Call it after
    /// the last line that must be shipped and before the bus is closed.
    pub async fn close(self, bound: Duration) -> bool {
        self.closing.cancel();
        let Self { mut task, .. } = self;
        match timeout(bound, &mut task).await {
            Ok(ended) => ended.is_ok(),
            Err(_) => {
                task.abort();
                false
            }
        }
    }
}

struct Work {
    queue: Arc<Queue>,
    service: String,
    bus: Bus,
    closing: CancellationToken,
    stats: Arc<ShippingStats>,
}

impl Work {
    async fn run(self: Arc<Self>) {
        loop {
            let closing = self.closing.is_cancelled();
            if self.queue.is_empty() {
                if closing {
                    return;
                }
                tokio::select! {
                    () = self.queue.some.notified() => {}
                    () = self.closing.cancelled() => continue,
                }
            }
            if !closing {
                self.linger().await;
            }
            let (records, dropped) = self.queue.take();
            if !records.is_empty() || !dropped.is_empty() {
                let batch = LogBatch { service: self.service.clone(), records, dropped };
                self.ship(batch).await;
            }
        }
    }

    /// Waits until a whole batch is queued, at most for `LINGER`.
    async fn linger(&self) {
        let until = Instant::now() + LINGER;
        while !self.queue.batch_is_full() {
            tokio::select! {
                full = timeout_at(until, self.queue.full.notified()) => if full.is_err() { return },
                () = self.closing.cancelled() => return,
            }
        }
    }

    /// Publishes a batch until it is stored. A batch that is too large for the bus is divided.
    async fn ship(&self, batch: LogBatch) {
        let mut parts = vec![batch];
        while let Some(batch) = parts.pop() {
            let Err(TooLarge(mut batch)) = self.publish(batch).await else { continue };
            if batch.records.len() <= 1 {
                for LogRecord { severity, .. } in &batch.records {
                    tracing::warn!("dropped a log record that is larger than the bus accepts");
                    self.queue.count_dropped(*severity);
                }
                self.queue.restore(&batch.dropped);
                continue;
            }
            let second = batch.records.split_off(batch.records.len() / 2);
            let service = batch.service.clone();
            parts.push(LogBatch { service, records: second, dropped: Vec::new() });
            parts.push(batch);
        }
    }

    async fn publish(&self, batch: LogBatch) -> Result<(), TooLarge> {
        // All attempts use one id: the aggregator keeps a batch once, however often it arrives.
        let id = MessageId::now();
        let mut backoff = BACKOFF;
        loop {
            let publish = self.bus.publish(batch.clone()).id(id.clone()).into_future();
            let error = match timeout(DEADLINE, publish).await {
                Ok(Ok(_)) => {
                    self.stats.count(&batch);
                    if backoff.tries() > 0 {
                        tracing::info!("logs are shipped again");
                    }
                    return Ok(());
                }
                Ok(Err(error)) if error.kind() == ErrorKind::TooLarge => return Err(TooLarge(batch)),
                Ok(Err(error)) => error,
                Err(_) => Error::new(ErrorKind::Timeout, "publishing took too long"),
            };
            if backoff.tries() == 0 {
                // Logged by the other layers; our own layer leaves it out.
                tracing::warn!(
                    %error,
                    "cannot ship logs; they are queued, and a full queue drops records of the lowest level"
                );
            }
            backoff.pause().await;
        }
    }
}

/// A batch that is too large for the bus.
struct TooLarge(LogBatch);
