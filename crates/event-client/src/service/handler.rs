//! Handlers: plain async functions, and their settings.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use super::extract::{FromIncoming, FromPayload};
use super::incoming::Incoming;
use super::outcome::Outcome;
use super::reply::{AnswerTo, Req, RequestHandler};
use super::retry::RetryPolicy;
use super::route::{Endpoint, Route};
use super::versions::Versions;
use crate::transport::{Start, Subscribe};
use event_transport::error::Result;

/// A function that handles messages. Implemented for async functions of extractors; `M` is the list of their types.
#[diagnostic::on_unimplemented(
    message = "this function is not a handler",
    label = "not a handler",
    note = "a handler is an `async fn` of up to 8 extractors and last a payload (`Msg<T>` or `Req<T>`), with every future \
            `Send`; it returns `()`, `Outcome`, or `Result<(), E>`, and for `Req<T>` a `Result<T::Reply, E>`",
    note = "`#[debug_handler]` on the function shows which value keeps its future from being `Send`"
)]
pub trait Handler<M, S>: Clone + Send + Sync + Sized + 'static {
    /// Returns the handler's name and the subjects that it receives.
    ///
    /// # Errors
    /// The errors of [`FromPayload::route`].
    fn route(&self) -> Result<Route>;

    /// Returns the request that the handler answers; `None` for handlers of events.
    fn request(&self) -> Option<Endpoint> {
        None
    }

    /// Handles one message. The arguments are extracted before the future is created, so the future borrows nothing.
    fn call(self, incoming: Incoming, state: Arc<S>) -> impl Future<Output = Outcome> + Send + 'static;

    /// Returns the versions of its event that the handler can read; `None` when it accepts every message.
    fn versions(&self) -> Option<Versions> {
        None
    }

    /// Returns the handler's settings.
    fn options(&self) -> HandlerOptions {
        HandlerOptions::default()
    }

    /// Handles up to `n` messages at a time in this process, and fetches only these and the number that
    /// [`prefetch`](Self::prefetch) adds. Default 16.
    fn concurrency(self, n: usize) -> Configured<Self, M, S> {
        Configured::new(self).concurrency(n)
    }

    /// Fetches up to `n` messages beyond those that are being handled. Default 0.
    ///
    /// For fast handlers, which would otherwise wait for the broker after every few messages. Prefetched messages are
    /// leased: no other process can receive them meanwhile, and a crash counts as an attempt for each of them.
    fn prefetch(self, n: usize) -> Configured<Self, M, S> {
        Configured::new(self).prefetch(n)
    }

    /// Handles messages with the same key one after another and in order, including their retries.
    fn keyed(self) -> Configured<Self, M, S> {
        Configured::new(self).keyed()
    }

    /// Sets the retry policy: the waits between attempts and the number of attempts.
    fn retry(self, policy: RetryPolicy) -> Configured<Self, M, S> {
        Configured::new(self).retry(policy)
    }

    /// Sets the group's name instead of `<service>.<event>`: needed when two handlers take the same event.
    fn group(self, name: impl Into<SmolStr>) -> Configured<Self, M, S> {
        Configured::new(self).group(name)
    }

    /// Sets the position at which a new group starts. Default: the messages published after the group was created.
    fn start(self, start: Start) -> Configured<Self, M, S> {
        Configured::new(self).start(start)
    }

    /// Sets the time after which the messages fetched by a crashed process are delivered again. Default 30 s; running
    /// processes renew their leases.
    fn lease(self, lease: Duration) -> Configured<Self, M, S> {
        Configured::new(self).lease(lease)
    }

    /// Also accepts messages that are not CloudEvents: `Msg<T>` decodes the body as the data, in JSON unless the
    /// message declares another encoding, and `Raw` accepts any body. Id, time and source are derived as documented
    /// at [`Envelope::read_plain`]. A malformed message that declares itself a CloudEvent still becomes a dead
    /// letter.
    ///
    /// ```no_run
    /// # use event_client::service::{Handler, Raw, Service};
    /// async fn store(Raw(message): Raw) { println!("{}: {} bytes", message.subject, message.payload.len()) }
    ///
    /// Service::<()>::new("archive").on_subject("sensors.>", store.plain());
    /// ```
    ///
    /// [`Envelope::read_plain`]: crate::envelope::Envelope::read_plain
    fn plain(self) -> Configured<Self, M, S> {
        Configured::new(self).plain()
    }

    /// Sets the time that an event of a version unknown to this handler waits in its group for a member that can read
    /// it, before it becomes a dead letter with the reason `unknown-version`. Default 24 h; see [deploying a new
    /// version](crate::event#deploying-a-new-version).
    fn await_version(self, within: Duration) -> Configured<Self, M, S> {
        Configured::new(self).await_version(within)
    }

    /// Delivers every message published from now on to every process; nothing is settled, retried or stored.
    fn broadcast(self) -> Configured<Self, M, S> {
        Configured::new(self).broadcast()
    }
}

/// The settings of a handler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerOptions {
    /// The most messages at a time.
    pub concurrency: Option<usize>,
    /// Whether messages of the same key are handled in order.
    pub keyed: bool,
    /// The retry policy.
    pub retry: Option<RetryPolicy>,
    /// The group's name.
    pub group: Option<SmolStr>,
    /// The position at which a new group starts.
    pub start: Start,
    /// The lease of fetched messages.
    pub lease: Option<Duration>,
    /// Whether every process receives every message, without a durable group.
    pub broadcast: bool,
    /// Whether messages that are not CloudEvents are accepted as plain data.
    pub plain: bool,
    /// The most items of a batch; `concurrency` then counts batches.
    pub batch: Option<usize>,
    /// The most messages that are fetched in addition to those being handled.
    pub prefetch: usize,
    /// The time that an event of an unknown version waits for a member that can read it.
    pub await_version: Option<Duration>,
}

impl HandlerOptions {
    /// The default number of messages at a time.
    pub const DEFAULT_CONCURRENCY: usize = 16;
    /// The default time that an event of an unknown version waits.
    pub const DEFAULT_AWAIT_VERSION: Duration = Duration::from_secs(24 * 3600);
    /// The most messages that one handler holds at a time, whatever its batches and its concurrency are.
    pub const MAX_SLOTS: usize = 1 << 16;

    /// Returns the number of calls of the handler at a time.
    pub(crate) fn calls(&self) -> usize {
        self.concurrency.unwrap_or(Self::DEFAULT_CONCURRENCY).max(1)
    }

    /// Returns the number of messages at a time.
    pub(crate) fn slots(&self) -> usize {
        self.calls().saturating_mul(self.batch.unwrap_or(1)).min(Self::MAX_SLOTS)
    }

    /// Returns the group's name: the handler's own setting, or a name made of the service's and the event's.
    pub(crate) fn group(&self, service: &str, route: &str) -> SmolStr {
        self.group.clone().unwrap_or_else(|| smol_str::format_smolstr!("{service}.{route}"))
    }

    pub(crate) fn subscribe(&self, mut spec: Subscribe) -> Subscribe {
        spec.start = self.start;
        spec.keyed = self.keyed;
        spec.max_in_flight = self.slots().saturating_add(self.prefetch).min(Self::MAX_SLOTS);
        spec.lease = self.lease.unwrap_or(Subscribe::DEFAULT_LEASE);
        spec
    }
}

/// A handler with its own settings.
pub struct Configured<H, M, S> {
    handler: H,
    options: HandlerOptions,
    _types: PhantomData<fn() -> (M, S)>,
}

impl<H, M, S> Configured<H, M, S>
where
    H: Handler<M, S>,
{
    fn new(handler: H) -> Self {
        let options = handler.options();
        Self { handler, options, _types: PhantomData }
    }
}

macro_rules! options {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty)?) => $field:ident = $value:expr;)*) => {
        impl<H, M, S> Configured<H, M, S> {$(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self $(, $argument: $type)?) -> Self {
                self.options.$field = $value;
                self
            }
        )*}
    };
}

options! {
    /// See [`Handler::concurrency`].
    concurrency(n: usize) => concurrency = Some(n);
    /// See [`Handler::prefetch`].
    prefetch(n: usize) => prefetch = n;
    /// See [`Handler::keyed`].
    keyed() => keyed = true;
    /// See [`Handler::retry`].
    retry(policy: RetryPolicy) => retry = Some(policy);
    /// See [`Handler::group`].
    group(name: impl Into<SmolStr>) => group = Some(name.into());
    /// See [`Handler::start`].
    start(start: Start) => start = start;
    /// See [`Handler::lease`].
    lease(lease: Duration) => lease = Some(lease);
    /// See [`Handler::plain`].
    plain() => plain = true;
    /// See [`Handler::await_version`].
    await_version(within: Duration) => await_version = Some(within);
    /// See [`Handler::broadcast`].
    broadcast() => broadcast = true;
}

impl<H: Clone, M, S> Clone for Configured<H, M, S> {
    fn clone(&self) -> Self {
        Self { handler: self.handler.clone(), options: self.options.clone(), _types: PhantomData }
    }
}

impl<H, M, S> fmt::Debug for Configured<H, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured").field("options", &self.options).finish_non_exhaustive()
    }
}

impl<H, M, S> Handler<M, S> for Configured<H, M, S>
where
    H: Handler<M, S>,
    M: 'static,
    S: 'static,
{
    fn route(&self) -> Result<Route> {
        self.handler.route()
    }

    fn request(&self) -> Option<Endpoint> {
        self.handler.request()
    }

    fn versions(&self) -> Option<Versions> {
        self.handler.versions()
    }

    fn call(self, incoming: Incoming, state: Arc<S>) -> impl Future<Output = Outcome> + Send + 'static {
        self.handler.call(incoming, state)
    }

    fn options(&self) -> HandlerOptions {
        self.options.clone()
    }
}

macro_rules! functions {
    ($([$($extractor:ident)*])*) => {$(
        #[allow(non_snake_case, unused_variables)]
        impl<F, Fut, S, P, $($extractor,)*> Handler<($($extractor,)* P,), S> for F
        where
            F: Fn($($extractor,)* P) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send + 'static,
            Fut::Output: AnswerTo<P>,
            P: FromPayload,
            $($extractor: FromIncoming<S>,)*
        {
            fn route(&self) -> Result<Route> {
                P::route()
            }

            fn request(&self) -> Option<Endpoint> {
                P::request()
            }

            fn versions(&self) -> Option<Versions> {
                P::versions()
            }

            fn call(self, incoming: Incoming, state: Arc<S>) -> impl Future<Output = Outcome> + Send + 'static {
                let future = (|| {
                    $(let $extractor = $extractor::from_incoming(&incoming, &state)?;)*
                    Ok::<_, crate::Error>(self($($extractor,)* P::from_payload(&incoming)?))
                })();
                let asked = incoming.asked;
                async move {
                    match future {
                        Ok(future) => future.await.settle(asked.as_deref()),
                        Err(error) => error.into(),
                    }
                }
            }
        }

        impl<T: crate::Request, $($extractor,)*> RequestHandler for ($($extractor,)* Req<T>,) {}
    )*};
}

functions! {
    [] [A] [A B] [A B C] [A B C D] [A B C D E] [A B C D E G] [A B C D E G H] [A B C D E G H I]
}
