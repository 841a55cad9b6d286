//! One channel of a member: its consumer, the check that no delivery is missing, and the ways to end it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::ShortString;
use lapin::{Channel, Consumer};
use tokio::time::Instant;

use super::acks::Acks;
use super::client::Client;
use super::connection::command;
use event_transport::consumer_name;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;

/// How long a stopping member waits for deliveries in flight.
const CALM: Duration = Duration::from_millis(300);
/// How long a channel stays open after its last acknowledgement. When some 32 acknowledgements wait for a quorum queue
/// to write them, the broker keeps further ones in the channel's process and drops them when the channel closes: their
/// messages would be delivered again.
const WRITTEN: Duration = Duration::from_millis(200);

/// An open channel that consumes a group's queue.
pub(super) struct Session {
    client: Arc<Client>,
    queue: ShortString,
    prefetch: u16,
    channel: Channel,
    /// The deliveries; each must pass [`Session::accept`].
    pub(super) consumer: Consumer,
    /// The consumer's name.
    name: String,
    /// Tag of a delivery that arrived before its predecessor: the channel is unreliable and must be closed.
    gap: Option<u64>,
    pub(super) acks: Acks,
}

impl Session {
    /// Starts to consume.
    pub(super) async fn open(client: Arc<Client>, group: &Group, prefetch: u16) -> Result<Self> {
        let channel = client.consume.channel().await?;
        command("set the credit", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let name = consumer_name().to_string();
        let queue = client.names.group(group);
        let consume = channel.basic_consume(
            queue.clone(),
            name.as_str().into(),
            BasicConsumeOptions::default(),
            client.consume.patience(),
        );
        let consumer = command("consume", consume).await.map_err(|error| error.with("group", group))?;
        let acks = Acks::new(channel.clone());
        Ok(Self { client, queue, prefetch, channel, consumer, name, gap: None, acks })
    }

    /// Notes the arrival of a delivery; returns whether it may be handled. After a gap no delivery may.
    pub(super) fn accept(&mut self, delivery: &Delivery) -> bool {
        if !self.acks.received(delivery.delivery_tag) {
            self.gap.get_or_insert(delivery.delivery_tag);
        }
        self.gap.is_none()
    }

    /// The tag of a delivery that arrived before its predecessor.
    pub(super) fn gap(&self) -> Option<u64> {
        self.gap
    }

    /// A delivery that has arrived already.
    pub(super) fn arrived(&mut self) -> Option<Delivery> {
        self.consumer.next().now_or_never()??.ok()
    }

    /// Waits for an answer of the broker: the deliveries that it sent on this channel before arrive before the answer.
    pub(super) fn fence(&self) -> impl Future<Output = ()> + Send + use<> {
        let (channel, prefetch) = (self.channel.clone(), self.prefetch);
        async move {
            let _ = command("look", channel.basic_qos(prefetch, BasicQosOptions::default())).await;
        }
    }

    /// Whether the broker may still have deliveries in flight to this consumer, which is being stopped since `since`.
    pub(super) async fn may_receive(&mut self, since: Instant) -> Result<bool> {
        if self.acks.unsettled() >= usize::from(self.prefetch) || Instant::now() > since + CALM {
            return Ok(false);
        }
        Ok(self.client.declarer.ready(self.queue.clone()).await? > 0)
    }

    pub(super) async fn cancel(&mut self) -> Result<()> {
        let cancel = self.channel.basic_cancel(self.name.as_str().into(), BasicCancelOptions::default());
        command("stop consuming", cancel).await
    }

    /// Closes the channel. Messages that are not acknowledged go back to their places in the queue.
    pub(super) async fn leave(&mut self) {
        if let Some(written) = self.acks.written_at() {
            tokio::time::sleep_until(written + WRITTEN).await;
        }
        self.close("left").await;
    }

    pub(super) async fn close(&mut self, reason: &str) {
        let _ = command("close", self.channel.close(200, reason.into())).await;
    }

    /// Closes a channel on which a delivery is missing: the broker then delivers its unacknowledged messages again.
    pub(super) async fn mistrust(&mut self, group: &Group, tag: u64) -> Error {
        tracing::warn!(%group, tag, "an earlier delivery did not arrive; the channel is closed");
        self.close("a delivery is missing").await;
        Error::new(ErrorKind::Unavailable, "a delivery did not arrive")
    }
}
