//! Publishes copies: retries, dead letters, replays. Each must arrive in a queue, so each is `mandatory`, and returned
//! copies are detected.
//!
//! The client attaches a returned message to *some* confirmation of the batch with which it was confirmed. Therefore
//! all waiting copies go in one batch, all confirmations of a batch are awaited, and a returned copy is identified by
//! its own number.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::connection::Link;
use super::error::{amqp, closed};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::supervise;

/// Maximum number of copies in a batch.
const BATCH: usize = 256;
/// How long the broker may take to confirm a batch.
const WITHIN: Duration = Duration::from_secs(10);

struct Job {
    exchange: ShortString,
    routing_key: ShortString,
    properties: BasicProperties,
    payload: Bytes,
    answer: oneshot::Sender<Result<()>>,
}

/// The queue of the copying task.
#[derive(Clone, Debug)]
pub(super) struct Republisher(mpsc::UnboundedSender<Job>);

impl Republisher {
    /// Starts the task; it ends when the last `Republisher` is dropped.
    pub(super) fn start(link: Arc<Link>) -> Self {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let died = link.closed.clone();
        tokio::spawn(supervise::run("rabbitmq copies", run(link, waiting), move || died.cancel()));
        Self(jobs)
    }

    /// Stores a copy in the queue of this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when the queue does not exist.
    pub(super) async fn to_queue(
        &self,
        queue: ShortString,
        properties: BasicProperties,
        payload: Bytes,
    ) -> Result<()> {
        self.send("".into(), queue, properties, payload).await
    }

    async fn send(
        &self,
        exchange: ShortString,
        routing_key: ShortString,
        properties: BasicProperties,
        payload: Bytes,
    ) -> Result<()> {
        let (answer, told) = oneshot::channel();
        self.0.send(Job { exchange, routing_key, properties, payload, answer }).map_err(|_| closed())?;
        told.await.unwrap_or_else(|_| Err(closed()))
    }
}

async fn run(link: Arc<Link>, mut waiting: mpsc::UnboundedReceiver<Job>) {
    let mut channel: Option<Channel> = None;
    let mut batch = Vec::new();
    let mut number = 0_u64;
    while waiting.recv_many(&mut batch, BATCH).await > 0 {
        let open = match channel.take().filter(|channel| channel.status().connected()) {
            Some(open) => Ok(open),
            None => link.confirming().await,
        };
        match open {
            Ok(open) => {
                let first = number;
                number += batch.len() as u64;
                if send(&open, first, &mut batch, &link).await {
                    channel = Some(open);
                } else if open.status().connected() {
                    link.abandon().await;
                }
            }
            Err(error) => {
                for job in batch.drain(..) {
                    let _ = job.answer.send(Err(Error::new(error.kind(), error.to_string())));
                }
            }
        }
    }
}

/// Sends a batch and reports each result; returns whether the channel is still usable.
async fn send(channel: &Channel, first: u64, batch: &mut Vec<Job>, link: &Link) -> bool {
    let publishes = batch.iter_mut().zip(first..).map(|(job, number)| {
        let properties = std::mem::take(&mut job.properties).with_correlation_id(number.to_string().into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, key, payload) = (job.exchange.clone(), job.routing_key.clone(), job.payload.clone());
        async move { channel.basic_publish(exchange, key, options, &payload, properties).await?.await }
    });
    let confirmations = match timeout(WITHIN, join_all(publishes)).await {
        Ok(confirmations) => confirmations,
        Err(_) => {
            let late = || Error::new(ErrorKind::Unavailable, "the broker did not confirm a copy in time");
            for job in batch.drain(..) {
                let _ = job.answer.send(Err(link.blocked().unwrap_or_else(late)));
            }
            return false;
        }
    };
    let mut returned = HashMap::new();
    for confirmation in &confirmations {
        if let Ok(Confirmation::Ack(Some(message)) | Confirmation::Nack(Some(message))) = confirmation
            && let Some(number) = message.delivery.properties.correlation_id()
        {
            returned.insert(number.as_str().to_owned(), message.reply_text.to_string());
        }
    }
    let mut good = true;
    for ((job, number), confirmation) in batch.drain(..).zip(first..).zip(confirmations) {
        let result = match confirmation {
            Ok(_) if returned.contains_key(&number.to_string()) => {
                Err(Error::new(ErrorKind::NotFound, "the queue for the copy does not exist")
                    .with("queue", &job.routing_key))
            }
            Ok(Confirmation::Ack(_)) => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::Unavailable, "the broker refused to store a copy")),
            Err(error) => {
                good = false;
                Err(amqp(error))
            }
        };
        let _ = job.answer.send(result);
    }
    good
}
