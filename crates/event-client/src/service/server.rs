//! Runs a request handler: its inbox, its workers, and the answer to each request.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::FutureExt;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tower_service::Service;

use super::incoming::Incoming;
use super::outcome::Outcome;
use super::reply_channel::Exchange;
use super::route::Endpoint;
use super::worker::HandlerRuntime;
use crate::codec::Codec;
use crate::delivery::{DeliveryInfo, Reason};
use crate::envelope::Envelope;
use crate::status::Status;
use crate::trail::Trail;
use crate::transport::{Frame, IncomingRequest};
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind};
use event_transport::supervise::{self, panic_text};

/// The queue of a handler's requests. The workers receive from it in turn, so no request waits for a new task.
type Inbox = Arc<Mutex<mpsc::Receiver<IncomingRequest>>>;

/// Starts `slots` workers on one inbox.
pub(crate) fn spawn<S>(
    service: S,
    slots: usize,
    runtime: Arc<HandlerRuntime>,
    endpoint: Endpoint,
    inbox: mpsc::Receiver<IncomingRequest>,
) -> JoinSet<()>
where
    S: Service<Incoming, Response = Outcome, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let inbox = Arc::new(Mutex::new(inbox));
    let mut workers = JoinSet::new();
    for _ in 0..slots.max(1) {
        let (service, runtime, inbox) = (service.clone(), runtime.clone(), inbox.clone());
        let work = move || work(service.clone(), runtime.clone(), endpoint, inbox.clone());
        workers.spawn(supervise::again("request worker", work));
    }
    workers
}

async fn work<S>(mut service: S, runtime: Arc<HandlerRuntime>, endpoint: Endpoint, inbox: Inbox)
where
    S: Service<Incoming, Response = Outcome, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let pristine = service.clone();
    loop {
        let ready = poll_fn(|cx| service.poll_ready(cx)).await;
        let Some(request) = next(&inbox, &runtime).await else { break };
        match ready {
            Ok(()) => runtime.serve(&mut service, &pristine, endpoint, request).await,
            Err(error) => {
                let exchange = Exchange::new(request.responder, Codec::Json, endpoint);
                let trail = || Trail::read(&request.message);
                runtime.answer(&exchange, trail, Err(Status::from(&error))).await;
            }
        }
    }
    // The service drains, or the transport has closed: in both cases this handler no longer answers.
    runtime.identity.draining.cancel();
}

/// Returns the next request; `None` when the service drains or the transport has closed.
async fn next(inbox: &Inbox, runtime: &HandlerRuntime) -> Option<IncomingRequest> {
    let mut inbox = inbox.lock().await;
    tokio::select! {
        biased;
        () = runtime.identity.draining.cancelled() => {
            // Dropping a request that has not started reports to its caller at once that another member should handle
            // it.
            inbox.close();
            while let Ok(unstarted) = inbox.try_recv() {
                drop(unstarted);
            }
            None
        }
        request = inbox.recv() => request,
    }
}

impl HandlerRuntime {
    /// Handles one request and answers it. Work whose caller no longer waits is dropped at once.
    async fn serve<S>(&self, service: &mut S, pristine: &S, endpoint: Endpoint, request: IncomingRequest)
    where
        S: Service<Incoming, Response = Outcome, Error = Error> + Clone,
    {
        let IncomingRequest { message, within, responder } = request;
        let deadline = bounds::from_now(within);
        if within.is_zero() || responder.gone().is_cancelled() {
            self.stats.released.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let envelope = Envelope::read_plain(&message, Some(jiff::Timestamp::now()));
        let codec = envelope.as_ref().ok().and_then(Envelope::codec).unwrap_or(self.bus.settings().codec);
        let exchange = Arc::new(Exchange::new(responder, codec, endpoint));
        let envelope = match envelope {
            Ok(envelope) => envelope,
            Err(error) => {
                let trail = || Trail::read(&message);
                return self.answer(&exchange, trail, Err(Status::from(&error))).await;
            }
        };
        let context = envelope.meta.context();
        let incoming = Incoming {
            message,
            info: DeliveryInfo::new(1),
            context: context.clone(),
            deadline: Some(deadline),
            envelope,
            bus: self.bus.clone(),
            handler: self.identity.clone(),
            asked: Some(exchange.clone()),
        };
        let trail = || Trail::of(&context);
        let run = context.clone().scope_until(deadline, async { service.call(incoming).await });
        let ended = tokio::select! {
            biased;
            ended = AssertUnwindSafe(run).catch_unwind() => ended,
            () = exchange.gone().cancelled() => {
                self.stats.released.fetch_add(1, Ordering::Relaxed);
                return;
            }
            () = tokio::time::sleep_until(deadline) => {
                self.stats.released.fetch_add(1, Ordering::Relaxed);
                // By its own clock the caller has already given up; this status is for a caller whose clock is
                // slower.
                let late = Status::deadline_exceeded("the deadline passed while the request was handled");
                drop(exchange.send(exchange.status(&late)).await);
                return;
            }
        };
        if exchange.gone().is_cancelled() && ended.is_ok() {
            self.stats.released.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let answer = match ended {
            // A layer's error replaces the handler's answer.
            Ok(Err(error)) => Err(Status::from(&error)),
            Ok(Ok(outcome)) => match exchange.kept() {
                Some(frame) => exchange.fits(&frame).map(|()| (frame, outcome)),
                None => Err(unanswered(outcome)),
            },
            Err(panic) => {
                // A panic may leave the service in an invalid state, so it is replaced.
                service.clone_from(pristine);
                self.stats.panicked.fetch_add(1, Ordering::Relaxed);
                let Trail { event_id, correlation_id, trace_id, span_id } = trail();
                tracing::error!(
                    service = %self.identity.service, subject = endpoint.subject,
                    event.id = event_id, correlation_id, trace_id, span_id,
                    panic = %panic_text(&*panic), "a request handler panicked"
                );
                // The panic text may contain confidential data, so the caller does not receive it.
                Err(Status::internal("the handler panicked"))
            }
        };
        // A chunk that was too large has already ended the answer, whatever the handler returned.
        let answer = exchange.refused().map_or(answer, Err);
        self.answer(&exchange, trail, answer).await;
    }

    /// Sends the last frame and counts it. Only this function logs a failure of the service.
    async fn answer(
        &self,
        exchange: &Exchange,
        trail: impl Fn() -> Trail,
        answer: Result<(Frame, Outcome), Status>,
    ) {
        let (frame, outcome) = answer.unwrap_or_else(|status| {
            let text = smol_str::format_smolstr!("{status}");
            let outcome = if status.code.is_server_fault() {
                Outcome::Retry { after: None, error: text }
            } else {
                Outcome::Reject { reason: Reason::Permanent, error: text }
            };
            (exchange.status(&status), outcome)
        });
        let (service, subject) = (&self.identity.service, exchange.endpoint.subject);
        let count = match &outcome {
            Outcome::Ack => &self.stats.acked,
            Outcome::Retry { error, .. } => {
                let Trail { event_id, correlation_id, trace_id, span_id } = trail();
                tracing::warn!(
                    %service, subject, event.id = event_id, correlation_id, trace_id, span_id, %error,
                    "a request failed"
                );
                &self.stats.rejected
            }
            Outcome::Reject { error, .. } => {
                if tracing::enabled!(tracing::Level::DEBUG) {
                    let Trail { event_id, correlation_id, trace_id, span_id } = trail();
                    tracing::debug!(
                        %service, subject, event.id = event_id, correlation_id, trace_id, span_id, %error,
                        "a request was refused"
                    );
                }
                &self.stats.rejected
            }
            Outcome::Release => &self.stats.released,
        };
        count.fetch_add(1, Ordering::Relaxed);
        match exchange.send(frame).await {
            // The frame passed our own check, and the server refused it as too large.
            Err(error) if error.kind() == ErrorKind::TooLarge => {
                let Trail { event_id, correlation_id, trace_id, span_id } = trail();
                tracing::warn!(
                    %service, subject, event.id = event_id, correlation_id, trace_id, span_id, %error,
                    "an answer is too large and could not be sent; the caller received an error status"
                );
            }
            Err(error) => tracing::debug!(%service, subject, %error, "an answer could not be sent"),
            Ok(()) => {}
        }
    }
}

/// Returns the status of a request that ended without an answer, in a layer or in the extraction of an argument.
fn unanswered(outcome: Outcome) -> Status {
    match outcome {
        Outcome::Ack => Status::internal("the handler gave no answer"),
        Outcome::Retry { error, .. } => Status::unavailable(error),
        Outcome::Release => Status::unavailable("the service is draining; send the request again"),
        Outcome::Reject { reason: Reason::Undecodable | Reason::UnknownType, error } => {
            Status::invalid_argument(error)
        }
        Outcome::Reject { reason: Reason::Unauthorised, error } => Status::permission_denied(error),
        Outcome::Reject { error, .. } => Status::failed_precondition(error),
    }
}
