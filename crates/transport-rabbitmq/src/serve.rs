//! Serves requests: members of a service share one queue for each subject; when a member dies, the callers of its
//! requests get an error.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Consumer};
use smol_str::SmolStr;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::client::Client;
use super::codec;
use super::connection::{RETRY, command};
use super::declare::{DURABLE, arguments, number, word};
use super::mailbox::{Mailbox, number_of};
use super::reply::{Answering, Outgoing, Step};
use super::served::{InProgress, Served};
use event_transport::bounds;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::subject::Subject;
use event_transport::supervise;
use event_transport::{IncomingRequest, Responder, Serve};

/// The queue of a subject is deleted with its last consumer, or after this number of milliseconds without use, as after
/// a broker's restart.
const UNUSED: u64 = 300_000;

/// The service side of one connection.
#[derive(Clone, Debug)]
pub(super) struct Server {
    client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    served: Arc<Served>,
}

impl Server {
    pub(super) fn new(client: Arc<Client>, mailbox: Arc<Mailbox>, served: Arc<Served>) -> Self {
        Self { client, mailbox, served }
    }

    /// Opens one member of a service.
    pub(super) async fn serve(&self, spec: Serve) -> Result<mpsc::Receiver<IncomingRequest>> {
        if spec.subjects.is_empty() {
            return Err(Error::new(ErrorKind::Config, "a service serves at least one subject"));
        }
        let max_in_flight = spec.max_in_flight.clamp(1, 60_000);
        let inbox = self.mailbox.inbox().await?;
        let open = self.open(&spec.subjects, max_in_flight).await?;
        let (sender, requests) = mpsc::channel(max_in_flight);
        let slots = Arc::new(Semaphore::new(max_in_flight));
        let serving = self.clone().run(spec, max_in_flight, inbox, open, sender, slots);
        tokio::spawn(supervise::run("rabbitmq serve", serving, || {}));
        Ok(requests)
    }

    async fn open(&self, subjects: &[Subject], max_in_flight: usize) -> Result<(Channel, Vec<Consumer>)> {
        let channel = self.client.consume.channel().await?;
        // All subjects together get no more than the limit, unless the subjects outnumber it, as each needs at least
        // one.
        let each = u16::try_from((max_in_flight / subjects.len()).max(1)).unwrap_or(u16::MAX);
        command("set the credit", channel.basic_qos(each, BasicQosOptions::default())).await?;
        let mut consumers = Vec::new();
        for subject in subjects {
            let queue = self.client.names.requests(subject.as_str());
            let options = QueueDeclareOptions { auto_delete: true, ..DURABLE };
            let arguments = arguments([("x-queue-type", word("classic")), ("x-expires", number(UNUSED))]);
            command("make a queue of requests", channel.queue_declare(queue.clone(), options, arguments))
                .await
                .map_err(|error| error.with("queue", &queue))?;
            // A classic queue refuses a consumer's own `x-consumer-timeout`.
            let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
            let consume = channel.basic_consume(queue, subject.as_str().into(), options, arguments);
            consumers.push(command("consume requests", consume).await?);
        }
        Ok((channel, consumers))
    }

    async fn run(
        self,
        spec: Serve,
        max_in_flight: usize,
        mut inbox: ShortString,
        open: (Channel, Vec<Consumer>),
        sender: mpsc::Sender<IncomingRequest>,
        slots: Arc<Semaphore>,
    ) {
        let mut open = Some(open);
        let mut backoff = RETRY;
        loop {
            let (channel, consumers) = match open.take() {
                Some(open) => open,
                None => {
                    let made = async {
                        inbox = self.mailbox.inbox().await?;
                        self.open(&spec.subjects, max_in_flight).await
                    };
                    tokio::select! {
                        made = made => match made {
                            Ok(made) => {
                                tracing::info!(service = %spec.service, "serving again");
                                backoff = RETRY;
                                made
                            }
                            Err(error) => {
                                if backoff.tries() == 0 {
                                    tracing::warn!(%error, service = %spec.service, "serving is interrupted");
                                }
                                backoff.pause().await;
                                continue;
                            }
                        },
                        () = sender.closed() => return,
                        () = self.client.closing.cancelled() => return,
                    }
                }
            };
            let mut arrivals = futures_util::stream::select_all(consumers);
            loop {
                let arrival = tokio::select! {
                    arrival = arrivals.next() => arrival,
                    () = sender.closed() => {
                        self.leave(&spec, &channel, &slots, max_in_flight).await;
                        return;
                    }
                    () = self.client.closing.cancelled() => {
                        drop(sender);
                        // Requests in progress are abandoned, and their callers are notified.
                        self.leave(&spec, &channel, &slots, max_in_flight).await;
                        return;
                    }
                };
                let Some(Ok(delivery)) = arrival else { break };
                let slot = tokio::select! {
                    slot = slots.clone().acquire_owned() => slot.expect("never closed"),
                    () = self.client.closing.cancelled() => continue,
                };
                self.begin(delivery, slot, &inbox, &sender);
            }
        }
    }

    /// Takes no more requests, and returns when the ones in progress are answered.
    async fn leave(&self, spec: &Serve, channel: &Channel, slots: &Arc<Semaphore>, max_in_flight: usize) {
        for subject in &spec.subjects {
            let cancel = channel.basic_cancel(subject.as_str().into(), BasicCancelOptions::default());
            let _ = command("stop serving", cancel).await;
        }
        let all = u32::try_from(max_in_flight).unwrap_or(u32::MAX);
        let done = slots.clone().acquire_many_owned(all);
        if self.client.closing.is_cancelled() {
            let _ = tokio::time::timeout(Duration::from_secs(2), done).await;
        } else {
            tokio::select! {
                _ = done => {}
                () = self.client.closing.cancelled() => {}
            }
        }
    }

    fn begin(
        &self,
        delivery: Delivery,
        slot: OwnedSemaphorePermit,
        inbox: &ShortString,
        sender: &mpsc::Sender<IncomingRequest>,
    ) {
        let Delivery { routing_key, redelivered, properties, data, acker, .. } = delivery;
        let number = number_of(&properties);
        let caller = properties.reply_to().as_ref().map(|inbox| SmolStr::new(inbox.as_str()));
        let subject =
            routing_key.as_str().strip_prefix(&*format!("{}", self.client.names.requests(""))).unwrap_or("");
        let until = codec::Fields(properties.headers().as_ref()).time(headers::DEADLINE);
        let read = codec::read(subject, &properties, data.into());
        let within = until.map_or(Duration::from_secs(60), bounds::left_until);
        let (frames, outgoing) = mpsc::unbounded_channel();
        let at = (caller.unwrap_or_default(), number.unwrap_or(0));
        let InProgress { room, gone } = self.served.begin(at.clone());
        let answering = Answering {
            mailbox: self.mailbox.clone(),
            served: self.served.clone(),
            room: room.clone(),
            at,
            foreign: (number.is_none()).then(|| properties.correlation_id().clone()).flatten(),
            inbox: inbox.clone(),
            gone: gone.clone(),
            deadline: bounds::from_now(within),
            closing: self.client.closing.clone(),
        };
        let refuse = redelivered || within.is_zero() || read.is_err();
        if let (false, Ok(read)) = (refuse, read) {
            let outgoing = Outgoing { frames, room, unread: 0 };
            let responder = Responder::new(Box::new(outgoing), gone, self.client.capabilities.max_payload);
            let request = IncomingRequest { message: Arc::new(read.message), within, responder };
            // Fails only when no receiver is left; then the dropped responder reports to the caller that the request
            // was dropped.
            drop(sender.try_send(request));
        } else {
            // A redelivered request may have been handled already by another member.
            let _ = frames.send(Step::Abandon);
        }
        tokio::spawn(async move {
            answering.run(outgoing).await;
            let _ = acker.ack(BasicAckOptions::default()).await;
            drop(slot);
        });
    }
}
