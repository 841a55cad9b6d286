//! Publishes messages: one channel, one task, a sliding window of unconfirmed messages in order.
//!
//! Messages that were unconfirmed when a connection broke are sent again, in order and before newer ones. The broker
//! may have stored them already, so they may be delivered twice, with the same id.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, poll};
use jiff::Timestamp;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::bindings::Bindings;
use super::client::Client;
use super::codec;
use super::connection::RETRY;
use super::error::{amqp, closed};
use event_transport::Receipt;
use event_transport::backoff::Backoff;
use event_transport::confirm::{Answer, Confirm};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::message::Message;
use event_transport::supervise;

/// Maximum number of unconfirmed messages in flight to the broker.
const WINDOW: usize = 2048;
/// Maximum number of messages that wait for a place in the window.
const WAITING: usize = 65_536;

/// A message in flight.
struct Pending {
    routing_key: ShortString,
    properties: BasicProperties,
    payload: Bytes,
    answer: Answer<Receipt>,
    deadline: Instant,
    /// A missing exchange may be created again for this message, once.
    mends: bool,
}

/// The queue of the publishing task.
#[derive(Debug)]
pub(super) struct Publisher {
    client: Arc<Client>,
    parcels: mpsc::UnboundedSender<Pending>,
    waiting: Arc<AtomicUsize>,
    finished: CancellationToken,
}

impl Publisher {
    /// Starts the task. A missing exchange is created again, with its bindings, if `provision` allows it: a user may
    /// delete it, and a broker that is killed may lose declarations of the last moment.
    pub(super) fn start(client: Arc<Client>, bindings: Arc<Bindings>) -> Self {
        let (parcels, incoming) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let finished = CancellationToken::new();
        let task = Task {
            exchange: client.names.events(),
            makes: client.config.provision.creates().then_some(bindings),
            client: client.clone(),
            incoming,
            waiting: waiting.clone(),
            under_way: VecDeque::new(),
            made: false,
            careful: false,
        };
        let done = finished.clone().drop_guard();
        let died = client.down.clone();
        let publishing = async move {
            task.run().await;
            drop(done);
        };
        tokio::spawn(supervise::run("rabbitmq publish", publishing, move || died.cancel()));
        Self { client, parcels, waiting, finished }
    }

    /// Publishes a message now, whatever its own time is.
    pub(super) fn publish(&self, message: &Message) -> Confirm<Receipt> {
        let properties = match codec::publication(message, Timestamp::now()) {
            Ok(properties) => properties,
            Err(error) => return Confirm::ready(Err(error)),
        };
        if self.client.closing.is_cancelled() {
            return Confirm::ready(Err(closed()));
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Confirm::ready(Err(Error::new(
                ErrorKind::Full,
                format!(
                    "{WAITING} messages already wait for the broker; await confirmations before publishing more"
                ),
            )));
        }
        let (answer, confirm) = Confirm::channel();
        let parcel = Pending {
            routing_key: message.subject.as_str().into(),
            properties,
            payload: message.payload.clone(),
            answer,
            deadline: Instant::now() + self.client.config.publish_timeout,
            mends: true,
        };
        match self.parcels.send(parcel) {
            Ok(()) => confirm,
            Err(_) => Confirm::ready(Err(closed())),
        }
    }

    /// Waits until every publish that was accepted before the close has its result.
    pub(super) async fn finished(&self) {
        self.finished.cancelled().await;
    }
}

type Sending = BoxFuture<'static, lapin::Result<Confirmation>>;

struct Task {
    client: Arc<Client>,
    exchange: ShortString,
    incoming: mpsc::UnboundedReceiver<Pending>,
    waiting: Arc<AtomicUsize>,
    under_way: VecDeque<(Pending, Sending)>,
    /// Creates the exchange again, with its bindings, when it is missing; `None` where that is not allowed.
    makes: Option<Arc<Bindings>>,
    /// The exchange must be created again.
    made: bool,
    /// The broker closed the channel because of one message of a batch without naming it: sends one at a time to find
    /// it.
    careful: bool,
}

/// Converts the broker's confirmation to the result of the publish.
fn stored(confirmation: Confirmation) -> Result<Receipt> {
    match confirmation {
        Confirmation::Ack(_) => Ok(Receipt::default()),
        _ => {
            let text = "the broker refused to store the message";
            Err(Error::new(ErrorKind::Unavailable, text).during("publish"))
        }
    }
}

/// Passes a message to the client. The first poll queues the frames, so the order is that of the calls.
async fn send(channel: &Channel, exchange: &ShortString, parcel: &Pending) -> Sending {
    let (channel, payload) = (channel.clone(), parcel.payload.clone());
    let (exchange, routing_key) = (exchange.clone(), parcel.routing_key.clone());
    let properties = parcel.properties.clone();
    let mut sending: Sending = Box::pin(async move {
        let options = BasicPublishOptions::default();
        channel.basic_publish(exchange, routing_key, options, &payload, properties).await?.await
    });
    match poll!(Pin::new(&mut sending)) {
        std::task::Poll::Ready(result) => Box::pin(std::future::ready(result)),
        std::task::Poll::Pending => sending,
    }
}

impl Task {
    async fn run(mut self) {
        let mut backoff = RETRY;
        loop {
            let Some(channel) = self.channel(&mut backoff).await else { return };
            if let (true, Some(bindings)) = (std::mem::take(&mut self.made), &self.makes) {
                // If it fails, the next publish fails, too.
                if let Err(error) = bindings.stand().await {
                    tracing::warn!(%error, "the exchange cannot be created again");
                }
            }
            if self.careful {
                match self.one_by_one(&channel).await {
                    None => self.careful = false,
                    Some(error) => {
                        tracing::debug!(%error, "the broker refused a message");
                        continue;
                    }
                }
            }
            let again: Vec<_> = self.under_way.drain(..).map(|(parcel, _)| parcel).collect();
            for parcel in again {
                let sending = send(&channel, &self.exchange, &parcel).await;
                self.under_way.push_back((parcel, sending));
            }
            match self.work(&channel).await {
                Some(error) => {
                    tracing::warn!(%error, unconfirmed = self.under_way.len(), "publishing to the broker is interrupted");
                }
                None => return,
            }
        }
    }

    /// Returns a channel, or `None` when there is nothing left to do. Messages that cannot wait longer get an error.
    async fn channel(&mut self, backoff: &mut Backoff) -> Option<Channel> {
        loop {
            // Without a message to send no connection is needed.
            if self.under_way.is_empty() {
                let parcel = tokio::select! {
                    parcel = self.incoming.recv() => parcel?,
                    () = self.client.closing.cancelled() => {
                        self.incoming.close();
                        self.incoming.recv().await?
                    }
                };
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                self.under_way.push_back((parcel, Box::pin(std::future::pending())));
            }
            let first = self.under_way.front().map(|(parcel, _)| parcel.deadline)?;
            let failure = match timeout_at(first, self.client.publish.confirming()).await {
                Ok(Ok(channel)) => {
                    *backoff = RETRY;
                    return Some(channel);
                }
                Ok(Err(error)) => Some(error),
                Err(_) => None,
            };
            let hopeless = self.client.closing.is_cancelled()
                || failure
                    .as_ref()
                    .is_some_and(|e| matches!(e.kind(), ErrorKind::Denied | ErrorKind::Config));
            self.expire(
                || match &failure {
                    Some(error) => {
                        Error::new(error.kind(), "the broker cannot be reached").because(error.to_string())
                    }
                    None => Error::new(ErrorKind::Unavailable, "the broker cannot be reached in time"),
                },
                hopeless,
            );
            if !self.under_way.is_empty() {
                backoff.pause().await;
            }
        }
    }

    /// Ends publishes that have waited too long, or all of them, with an error.
    fn expire(&mut self, error: impl Fn() -> Error, all: bool) {
        let now = Instant::now();
        while self.under_way.front().is_some_and(|(parcel, _)| all || parcel.deadline <= now) {
            let (parcel, _) = self.under_way.pop_front().expect("just seen");
            let _ = parcel.answer.send(Err(error().during("publish")));
        }
    }

    /// Sends and confirms until the channel breaks (returns its error), or until the bus is closed and every publish
    /// has its result.
    async fn work(&mut self, channel: &Channel) -> Option<Error> {
        let mut batch = Vec::with_capacity(256);
        let mut confirmed = Vec::new();
        let mut open = true;
        loop {
            let room = WINDOW.saturating_sub(self.under_way.len()).min(256);
            let deadline = self.under_way.front().map(|(parcel, _)| parcel.deadline);
            tokio::select! {
                biased;
                result = async { (&mut self.under_way.front_mut().expect("not empty").1).await },
                    if deadline.is_some() =>
                {
                    let mut next = Some(result);
                    let mut broken = None;
                    // The broker confirms many messages with one frame.
                    while let Some(result) = next {
                        let (parcel, _) = self.under_way.pop_front().expect("not empty");
                        match result {
                            Ok(confirmation) => confirmed.push((parcel.answer, stored(confirmation))),
                            Err(error) => {
                                broken = self.broken(parcel, error);
                                break;
                            }
                        }
                        next = self.under_way.front_mut().and_then(|(_, sending)| sending.now_or_never());
                    }
                    for (answer, result) in confirmed.drain(..).rev() {
                        let _ = answer.send(result);
                    }
                    if broken.is_some() {
                        return broken;
                    }
                }
                count = self.incoming.recv_many(&mut batch, room), if open && room > 0 => {
                    if count == 0 {
                        open = false;
                    }
                    self.waiting.fetch_sub(count, Ordering::Relaxed);
                    for parcel in batch.drain(..) {
                        let sending = send(channel, &self.exchange, &parcel).await;
                        self.under_way.push_back((parcel, sending));
                    }
                }
                () = self.client.closing.cancelled(), if open && !self.incoming.is_closed() => self.incoming.close(),
                () = async { sleep_until(deadline.expect("checked")).await }, if deadline.is_some() => {
                    let (link, within) = (self.client.publish.clone(), self.client.config.publish_timeout);
                    let late = || {
                        let text = format!("no confirmation within {within:?}; the outcome is unknown");
                        Error::new(ErrorKind::Timeout, text)
                    };
                    self.expire(|| link.blocked().unwrap_or_else(late), false);
                    if link.blocked().is_none() {
                        link.abandon().await;
                        return Some(late());
                    }
                }
            }
            if !open && self.under_way.is_empty() {
                return None;
            }
        }
    }

    /// Sends the unconfirmed messages one at a time; returns the error if the channel breaks.
    async fn one_by_one(&mut self, channel: &Channel) -> Option<Error> {
        while let Some((parcel, _)) = self.under_way.pop_front() {
            let sending = send(channel, &self.exchange, &parcel).await;
            let result = match timeout_at(parcel.deadline, sending).await {
                Ok(Ok(confirmation)) => stored(confirmation),
                Ok(Err(error)) => return self.broken(parcel, error),
                Err(_) => {
                    let text = "no confirmation in time; the outcome is unknown";
                    Err(Error::new(ErrorKind::Timeout, text).during("publish"))
                }
            };
            let _ = parcel.answer.send(result);
        }
        None
    }

    /// Handles a broken channel. The message that caused it is not sent again: it would break the next channel, too.
    fn broken(&mut self, parcel: Pending, error: lapin::Error) -> Option<Error> {
        let error = amqp(error);
        let guilty = matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::TooLarge | ErrorKind::Unsupported
        );
        let shown = Error::new(ErrorKind::Unavailable, error.to_string());
        let again = error.kind() == ErrorKind::NotFound && parcel.mends && self.makes.is_some();
        if again {
            self.made = true;
            self.under_way.push_front((Pending { mends: false, ..parcel }, Box::pin(std::future::pending())));
        } else if guilty && !self.careful && !self.under_way.is_empty() {
            self.careful = true;
            self.under_way.push_front((parcel, Box::pin(std::future::pending())));
        } else if guilty {
            let _ = parcel.answer.send(Err(error.during("publish")));
        } else {
            self.under_way.push_front((parcel, Box::pin(std::future::pending())));
        }
        Some(shown)
    }
}
