//! The rare events of a member's session: its subscription stops or is dropped, the bus closes, the exchange changes.

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::subscription::Feed;

/// A rare event.
pub(super) enum Signal {
    /// The subscription was stopped or dropped.
    Stopped,
    /// The last clone of the subscription was dropped.
    Gone,
    /// The bus is being closed.
    Closing,
    /// The problem with the exchange of events is another one, or has ended.
    Exchange(Option<String>),
}

/// Waits for all rare events at once: each is registered one time for a session. A `select!` would register and remove
/// each of them for every batch of messages.
pub(super) struct Signals(FuturesUnordered<BoxFuture<'static, (Signal, Option<Trouble>)>>);

type Trouble = watch::Receiver<Option<String>>;

async fn changed(mut trouble: Trouble) -> (Signal, Option<Trouble>) {
    match trouble.changed().await {
        Ok(()) => {
            let now = trouble.borrow_and_update().clone();
            (Signal::Exchange(now), Some(trouble))
        }
        Err(_) => std::future::pending().await,
    }
}

impl Signals {
    pub(super) fn new(feed: &Feed, closing: &CancellationToken, trouble: Trouble) -> Self {
        let signals = FuturesUnordered::<BoxFuture<'static, _>>::new();
        for (token, signal) in
            [(feed.stopped(), Signal::Stopped), (feed.gone(), Signal::Gone), (closing, Signal::Closing)]
        {
            let token = token.clone();
            signals.push(Box::pin(async move {
                token.cancelled().await;
                (signal, None)
            }));
        }
        signals.push(Box::pin(changed(trouble)));
        Self(signals)
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> Signal {
        match self.0.next().await {
            Some((signal, again)) => {
                if let Some(trouble) = again {
                    self.0.push(Box::pin(changed(trouble)));
                }
                signal
            }
            None => std::future::pending().await,
        }
    }
}
