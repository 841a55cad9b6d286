//! Runs one handler: its subscription, its workers, and the settlement of each delivery.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower_service::Service;

use super::confirmed::Unconfirmed;
use super::incoming::{Identity, Incoming};
use super::outcome::Outcome;
use super::retry::RetryPolicy;
use super::source::Taker;
use super::stats::Stats;
use super::versions::{Fate, Patience, Reader};
use crate::bus::Bus;
use crate::confirm::Confirm;
use crate::context::Context;
use crate::delivery::{Delivery, Reason, Rejection, Settlement};
use crate::envelope::Envelope;
use crate::message::Message;
use crate::trail::Trail;
use event_transport::bounds;
use event_transport::error::Error;
use event_transport::supervise::{self, panic_text};

/// The number of deliveries beyond the last attempt after which a message counts as one that crashes its consumers.
const CRASH_MARGIN: u32 = 5;

/// Everything that a worker needs in addition to the handler.
pub(crate) struct HandlerRuntime {
    pub(crate) bus: Bus,
    pub(crate) identity: Arc<Identity>,
    pub(crate) retry: RetryPolicy,
    pub(crate) stats: Arc<Stats>,
    /// For a handler of one event.
    pub(super) patience: Option<Arc<Patience>>,
    /// Called once for each message; `None` outside of tests.
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// Observes the settlement of every delivery, after it was given to the transport.
pub(crate) trait Observer: Send + Sync {
    fn settled(&self, handler: &Identity, message: &Message, attempt: u32, settlement: Settlement);
}

/// Starts `slots` workers on one subscription. Each worker takes a delivery only when its service is ready for it.
pub(super) fn spawn<S>(service: S, slots: usize, runtime: Arc<HandlerRuntime>, events: Taker) -> JoinSet<()>
where
    S: Service<Incoming, Response = Outcome, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let mut workers = JoinSet::new();
    for _ in 0..slots.max(1) {
        // These clones stay valid when a worker panics.
        let (service, runtime, events) = (service.clone(), runtime.clone(), events.clone());
        let work = move || work(service.clone(), runtime.clone(), events.clone());
        workers.spawn(supervise::again("service worker", work));
    }
    workers
}

async fn work<S>(mut service: S, runtime: Arc<HandlerRuntime>, mut events: Taker)
where
    S: Service<Incoming, Response = Outcome, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let pristine = service.clone();
    let mut unconfirmed = Unconfirmed::default();
    loop {
        // A layer that is not ready (an open breaker, a used-up rate) stops the fetching here.
        let ready = poll_fn(|cx| service.poll_ready(cx)).await;
        let Some(delivery) = events.next().await else { break };
        let (ending, context) = match ready {
            Ok(()) => runtime.attempt(&mut service, &pristine, &delivery).await,
            Err(error) => (Outcome::retry(error).into(), None),
        };
        if let Ending::Defer(_) = ending {
            events.stand_back();
        }
        let confirm = runtime.settle(delivery, ending, context.as_ref());
        unconfirmed.add(confirm, &runtime.identity.group, &runtime.stats).await;
    }
    unconfirmed.rest(&runtime.identity.group, &runtime.stats).await;
}

/// The result of a delivery.
enum Ending {
    Outcome(Outcome),
    /// This member does not know its version: it returns to the group for this time.
    Defer(Duration),
    /// It does not belong to the handler's event, although the group received it.
    Foreign,
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        Self::Outcome(outcome)
    }
}

impl HandlerRuntime {
    /// Runs the handler once, if it knows the event's version, and catches panics. Also returns the context of the
    /// handling, if there was any.
    async fn attempt<S>(
        &self,
        service: &mut S,
        pristine: &S,
        delivery: &Delivery,
    ) -> (Ending, Option<Context>)
    where
        S: Service<Incoming, Response = Outcome, Error = Error> + Clone,
    {
        let info = delivery.info();
        if info.attempt > self.retry.attempts.max(1).saturating_add(CRASH_MARGIN) {
            let error = format!("delivered {} times; it seems to crash its consumers", info.attempt);
            return (Outcome::Reject { reason: Reason::CrashLoop, error: error.into() }.into(), None);
        }
        let message = delivery.message();
        let read = match self.identity.plain {
            true => Envelope::read_plain(message, info.published_at),
            false => Envelope::read(message),
        };
        if let Some(patience) = &self.patience {
            let reader = Reader { group: &self.identity.group, broadcast: self.identity.broadcast };
            let meta = read.as_ref().ok().map(|envelope| &envelope.meta);
            let stored = info.published_at.or(meta.and_then(|meta| meta.time)).filter(|_| !info.replayed);
            match patience.judge(&reader, &message.subject, meta.map(|meta| meta.event_type.as_str()), stored)
            {
                Fate::Handle => {}
                Fate::Foreign => return (Ending::Foreign, None),
                Fate::Wait(pause) => return (Ending::Defer(pause), None),
                Fate::Overdue(error) => {
                    return (Outcome::Reject { reason: Reason::UnknownVersion, error }.into(), None);
                }
            }
        }
        let envelope = match read {
            Ok(envelope) => envelope,
            Err(error) => return (Outcome::from(error).into(), None),
        };
        let incoming = Incoming {
            message: message.clone(),
            info: info.clone(),
            context: envelope.meta.context(),
            deadline: envelope.meta.expirytime.map(instant),
            envelope,
            bus: self.bus.clone(),
            handler: self.identity.clone(),
            asked: None,
        };
        let context = incoming.context.clone();
        let run = async { service.call(incoming).await };
        let outcome = match AssertUnwindSafe(context.clone().scope(run)).catch_unwind().await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => error.into(),
            Err(panic) => {
                // A panic may leave the service in an invalid state, so it is replaced.
                service.clone_from(pristine);
                self.stats.panicked.fetch_add(1, Ordering::Relaxed);
                Outcome::retry(format_args!("the handler panicked: {}", panic_text(&*panic)))
            }
        };
        (outcome.into(), Some(context))
    }

    /// Applies the retry policy and settles the delivery. Only this function logs the failure.
    fn settle(&self, delivery: Delivery, ending: Ending, context: Option<&Context>) -> Confirm<()> {
        let attempt = delivery.info().attempt;
        let outcome = match ending {
            Ending::Outcome(outcome) => outcome,
            Ending::Foreign if !self.identity.broadcast => return delivery.ack(),
            Ending::Foreign => return self.tell(delivery, Settlement::Ack),
            Ending::Defer(after) => {
                self.stats.released.fetch_add(1, Ordering::Relaxed);
                return self.tell(delivery, Settlement::Defer { after });
            }
        };
        let (count, settlement) = match outcome {
            Outcome::Ack => (&self.stats.acked, Settlement::Ack),
            Outcome::Release => (&self.stats.released, Settlement::Release),
            Outcome::Reject { reason, error } => {
                (&self.stats.rejected, Settlement::Reject(Rejection::new(reason, error)))
            }
            // A broadcast is not stored, so it cannot be retried.
            Outcome::Retry { error, .. } if self.identity.broadcast || self.retry.is_last(attempt) => {
                (&self.stats.rejected, Settlement::Reject(Rejection::new(Reason::Exhausted, error)))
            }
            Outcome::Retry { after, error } => {
                let after = after.unwrap_or_else(|| self.retry.wait(attempt));
                (&self.stats.retried, Settlement::Retry { after, error })
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.log(&settlement, delivery.message(), attempt, context);
        self.tell(delivery, settlement)
    }

    fn tell(&self, delivery: Delivery, settlement: Settlement) -> Confirm<()> {
        let Some(observer) = &self.observer else { return delivery.settle(settlement) };
        let (message, attempt, told) =
            (delivery.message().clone(), delivery.info().attempt, settlement.clone());
        let confirm = delivery.settle(settlement);
        observer.settled(&self.identity, &message, attempt, told);
        confirm
    }

    /// Logs one line for a failure, with the correlation and the trace of the message.
    fn log(&self, settlement: &Settlement, message: &Message, attempt: u32, context: Option<&Context>) {
        if matches!(settlement, Settlement::Ack | Settlement::Release | Settlement::Defer { .. }) {
            return;
        }
        let Trail { event_id, correlation_id, trace_id, span_id } =
            context.map_or_else(|| Trail::read(message), Trail::of);
        let (group, subject) = (&self.identity.group, &message.subject);
        match settlement {
            Settlement::Retry { after, error } => tracing::warn!(
                %group, %subject, event.id = event_id, correlation_id, trace_id, span_id, attempt,
                retry_in_ms = bounds::millis(*after), %error, "handling failed, will be tried again"
            ),
            Settlement::Reject(rejection) if self.identity.broadcast => tracing::error!(
                %group, %subject, event.id = event_id, correlation_id, trace_id, span_id,
                error = %rejection.error, "handling a broadcast failed; it is not kept"
            ),
            Settlement::Reject(rejection) => tracing::error!(
                %group, %subject, event.id = event_id, correlation_id, trace_id, span_id, attempt,
                reason = rejection.reason.as_str(), error = %rejection.error,
                "handling failed for good, now a dead letter"
            ),
            Settlement::Ack | Settlement::Release | Settlement::Defer { .. } => {}
        }
    }
}

fn instant(time: jiff::Timestamp) -> Instant {
    bounds::from_now(bounds::left_until(time))
}
