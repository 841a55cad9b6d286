//! Handlers: plain async functions, and the knobs that go with them.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use tokio_util::sync::CancellationToken;

use super::extract::{Endpoint, FromIncoming, FromPayload, Route};
use super::incoming::Incoming;
use super::outcome::Outcome;
use super::reply::{AnswerTo, Req, RequestHandler};
use super::retry::RetryPolicy;
use super::versions::Versions;
use crate::error::Result;
use crate::transport::{Start, Subscribe};

/// A function that handles messages. Implemented for async functions of extractors; `M` is the list of their types.
#[diagnostic::on_unimplemented(
    message = "this function is not a handler",
    label = "not a handler",
    note = "a handler is an `async fn` of up to 8 extractors and last a payload (`Msg<T>` or `Req<T>`), with every future \
            `Send`; it returns `()`, `Outcome`, or `Result<(), E>`, and for `Req<T>` a `Result<T::Reply, E>`"
)]
pub trait Handler<M, S>: Clone + Send + Sync + Sized + 'static {
    /// What it receives.
    ///
    /// # Errors
    /// As [`FromPayload::route`].
    fn route(&self) -> Result<Route>;

    /// The request that it answers; `None` for handlers of events.
    fn request(&self) -> Option<Endpoint> {
        None
    }

    /// Handles one message. Extraction happens before the future is made, so the future borrows nothing.
    fn call(self, incoming: Incoming, state: Arc<S>) -> impl Future<Output = Outcome> + Send + 'static;

    /// The versions of its event that it can read; `None` when it takes whatever comes.
    fn versions(&self) -> Option<Versions> {
        None
    }

    /// Its settings.
    fn options(&self) -> HandlerOptions {
        HandlerOptions::default()
    }

    /// Handles up to `n` messages at a time in this process, and fetches no more than that and what
    /// [`prefetch`](Self::prefetch) adds. Default 16.
    fn concurrency(self, n: usize) -> Configured<Self, M, S> {
        Configured::new(self).concurrency(n)
    }

    /// Fetches up to `n` messages beyond those that are being handled. Default 0.
    ///
    /// For quick handlers, which would otherwise wait for the broker after every few messages. What waits here is
    /// leased: no other process can have it meanwhile, and a crash counts as an attempt at it.
    fn prefetch(self, n: usize) -> Configured<Self, M, S> {
        Configured::new(self).prefetch(n)
    }

    /// Handles messages with the same key one after another, in order, retries included.
    fn keyed(self) -> Configured<Self, M, S> {
        Configured::new(self).keyed()
    }

    /// When to try again, and when to give up.
    fn retry(self, policy: RetryPolicy) -> Configured<Self, M, S> {
        Configured::new(self).retry(policy)
    }

    /// Names the group instead of `<service>.<event>`: needed when two handlers take the same event.
    fn group(self, name: impl Into<SmolStr>) -> Configured<Self, M, S> {
        Configured::new(self).group(name)
    }

    /// Where the group starts when it is new. Default: with what is published from then on.
    fn start(self, start: Start) -> Configured<Self, M, S> {
        Configured::new(self).start(start)
    }

    /// How long a crashed process keeps what it had fetched. Default 30 s; live processes renew.
    fn lease(self, lease: Duration) -> Configured<Self, M, S> {
        Configured::new(self).lease(lease)
    }

    /// Takes messages that are no CloudEvents as well: `Msg<T>` decodes their body as the data, in JSON unless they say
    /// otherwise, and `Raw` takes any. Id, time and source are derived as [`Envelope::read_plain`] says. A message that
    /// says it is a CloudEvent and is malformed is a dead letter here too.
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

    /// How long an event of a version that this handler does not know waits in its group for a member that does,
    /// before it becomes a dead letter with the reason `unknown-version`. Default 24 h; see
    /// [deploying a new version](crate::event#deploying-a-new-version).
    fn await_version(self, within: Duration) -> Configured<Self, M, S> {
        Configured::new(self).await_version(within)
    }

    /// Every process gets every message from now on; nothing is settled, retried or kept.
    fn broadcast(self) -> Configured<Self, M, S> {
        Configured::new(self).broadcast()
    }
}

/// How a handler is run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerOptions {
    /// Most messages at a time.
    pub concurrency: Option<usize>,
    /// In order per key.
    pub keyed: bool,
    /// Retries.
    pub retry: Option<RetryPolicy>,
    /// The group's name.
    pub group: Option<SmolStr>,
    /// Where a new group starts.
    pub start: Start,
    /// The lease.
    pub lease: Option<Duration>,
    /// Ephemeral, everything to everyone.
    pub broadcast: bool,
    /// Messages that are no CloudEvents are taken as plain data.
    pub plain: bool,
    /// Most items of a batch; `concurrency` then counts batches.
    pub batch: Option<usize>,
    /// Messages that wait here beside those being handled.
    pub prefetch: usize,
    /// How long an unknown version waits for a member that knows it.
    pub await_version: Option<Duration>,
}

impl HandlerOptions {
    /// Messages at a time when nothing is said.
    pub const DEFAULT_CONCURRENCY: usize = 16;
    /// How long an unknown version waits when nothing is said.
    pub const DEFAULT_AWAIT_VERSION: Duration = Duration::from_secs(24 * 3600);
    /// Most messages that one handler holds at a time, whatever its batches and concurrency.
    pub const MAX_SLOTS: usize = 1 << 16;

    /// Calls of the handler at a time.
    pub(crate) fn calls(&self) -> usize {
        self.concurrency.unwrap_or(Self::DEFAULT_CONCURRENCY).max(1)
    }

    /// Messages at a time.
    pub(crate) fn slots(&self) -> usize {
        self.calls().saturating_mul(self.batch.unwrap_or(1)).min(Self::MAX_SLOTS)
    }

    /// The group's name: the handler's own word, or made of the service's and the event's.
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

/// A handler with settings of its own.
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

/// Who handles: known to every message on its way to the handler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// The service.
    pub service: SmolStr,
    /// The group, `<service>.<event>` unless named.
    pub group: SmolStr,
    /// Most attempts before a message is given up.
    pub attempts: u32,
    /// Ephemeral: what fails is neither tried again nor kept.
    pub broadcast: bool,
    /// Messages that are no CloudEvents are taken as plain data.
    pub plain: bool,
    /// Calls of the handler at a time.
    pub concurrency: usize,
    /// Cancelled when the service fetches no more.
    pub(crate) draining: CancellationToken,
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
