//! Consumes log batches from the bus; a batch is acknowledged after its records are stored durably.

use std::time::Duration;

use event_client::Bus;
use event_client::delivery::{Delivery, Reason, Rejection};
use event_client::envelope::Envelope;
use event_client::event::Event as _;
use event_client::log::{LogBatch, LogRecord};
use event_client::message::MessageId;
use event_client::service::{HandlerOptions, Versions};
use event_client::subscription::Subscription;
use event_client::transport::{Start, Subscribe};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::Ingest;
use crate::error::{Error, ErrorKind, Result};
use crate::store::RecordBatch;

/// The durable consumer group; several aggregators share its batches.
pub(crate) const GROUP: &str = "log-aggregator";
/// Maximum number of batches in flight; their records share commits.
const CREDIT: usize = 64;
/// Delay before a batch that could not be stored is retried. The number of retries is not limited: a full disk is not
/// a fault of the batch.
const AGAIN: Duration = Duration::from_secs(5);

/// Delay before a batch of an unknown version is delivered again.
const ELSEWHERE: Duration = Duration::from_secs(10);

/// Longest time for which a subscription is retried while the bus is too busy.
const JOIN: Duration = Duration::from_secs(60);

/// Subscribes, and retries while the bus is too busy, so that services need not wait before they publish logs.
async fn join(bus: &Bus, spec: Subscribe) -> event_client::Result<Subscription> {
    let give_up = Instant::now() + JOIN;
    loop {
        match bus.subscribe(spec.clone()).await {
            Err(error) if error.is_temporary() && Instant::now() < give_up => {
                tracing::warn!(%error, "the bus is too busy to accept the subscription; retrying");
                sleep(Duration::from_millis(100)).await;
            }
            done => return done,
        }
    }
}

/// Receives batches until it is stopped.
#[derive(Debug)]
pub(crate) struct Consumer {
    subscription: Subscription,
    work: TaskTracker,
}

impl Consumer {
    /// Subscribes as a member of the group and starts to receive batches. A new group starts with the earliest stored
    /// batch.
    pub(crate) async fn start(bus: &Bus, ingest: Ingest) -> Result<Self> {
        let failed =
            |e| Error::new(ErrorKind::Unavailable, "cannot subscribe to the logs on the bus").because(e);
        let group = GROUP.parse().map_err(failed)?;
        let pattern = LogBatch::PATTERN.parse().map_err(failed)?;
        // A bus that keeps no history has no earlier batches to start with.
        let start = if bus.capabilities().replay { Start::Earliest } else { Start::New };
        let spec = Subscribe { start, max_in_flight: CREDIT, ..Subscribe::group(group, vec![pattern]) };
        let subscription = join(bus, spec).await.map_err(failed)?;
        let work = TaskTracker::new();
        let (deliveries, tracker) = (subscription.clone(), work.clone());
        work.spawn(async move {
            while let Some(delivery) = deliveries.next().await {
                tracker.spawn(take(delivery, ingest.clone()));
            }
        });
        work.close();
        Ok(Self { subscription, work })
    }

    /// Stops receiving; returns when all received batches are stored and acknowledged.
    pub(crate) async fn stop(&self) {
        self.subscription.stop();
        self.work.wait().await;
    }
}

async fn take(delivery: Delivery, ingest: Ingest) {
    let batch = match read(&delivery) {
        Ok(batch) => batch,
        Err(Refused::Newer) => {
            tracing::debug!(
                "a log batch of an unknown version is deferred for an aggregator that supports it"
            );
            drop(delivery.defer(ELSEWHERE).await);
            return;
        }
        Err(Refused::Dead(reason, error)) => {
            let message = delivery.message();
            tracing::warn!(
                subject = %message.subject, event.id = %message.id, error,
                "a log batch cannot be decoded and becomes a dead letter"
            );
            drop(delivery.reject(Rejection::new(reason, error)).await);
            return;
        }
    };
    // The message id identifies the batch: a batch that was stored but not acknowledged is not stored again.
    let delivered = match &delivery.message().id {
        MessageId::Uuid(id) => *id,
        MessageId::Text(text) => Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()),
    };
    let settled =
        match ingest.push(RecordBatch { delivery: Some(delivered), records: records_of(batch) }).await {
            Ok(()) => delivery.ack().await,
            Err(error) if error.kind() == ErrorKind::Closed => delivery.release().await,
            Err(error) => delivery.retry(AGAIN, error.chain()).await,
        };
    if let Err(error) = settled {
        // The batch is delivered again and recognised by its id.
        tracing::debug!(%error, "a log batch was not settled");
    }
}

/// The reason why a batch is not stored.
enum Refused {
    /// Another aggregator may support its version.
    Newer,
    Dead(Reason, String),
}

fn read(delivery: &Delivery) -> std::result::Result<LogBatch, Refused> {
    let undecodable = |e: event_client::Error| Refused::Dead(Reason::Undecodable, e.to_string());
    let envelope = Envelope::read(delivery.message()).map_err(undecodable)?;
    let kind = &envelope.meta.event_type;
    if Versions::of::<LogBatch>().unknown(kind).is_some() {
        let stored = delivery.info().published_at.or(envelope.meta.time);
        let waited = stored.map(|at| Timestamp::now().duration_since(at));
        let may_wait = SignedDuration::try_from(HandlerOptions::DEFAULT_AWAIT_VERSION)
            .is_ok_and(|most| waited < Some(most));
        return Err(if may_wait {
            Refused::Newer
        } else {
            Refused::Dead(Reason::UnknownVersion, format!("no aggregator supported `{kind}` for a day"))
        });
    }
    if *kind != LogBatch::SUBJECT {
        return Err(Refused::Dead(Reason::UnknownType, format!("`{kind}` is not a log batch")));
    }
    LogBatch::decode(LogBatch::VERSION, &envelope).map_err(undecodable)
}

/// Returns the records, and one more that reports how many records the service dropped.
fn records_of(batch: LogBatch) -> Vec<LogRecord> {
    let (service, dropped) = (batch.service.clone(), batch.dropped.clone());
    let mut records = batch.into_records();
    let count: u64 = dropped.iter().map(|dropped| dropped.count).sum();
    if count > 0 {
        let text =
            format!("{count} log records of this service were dropped before shipping: its queue was full");
        let mut lost = LogRecord::new(service, "WARN", text);
        for dropped in dropped {
            lost.attributes.insert(format!("dropped.{}", dropped.severity.name()), dropped.count.into());
        }
        records.push(lost);
    }
    records
}
