//! The interface of a contestant; one file each below `contestants/`.

use std::future::Future;

use anyhow::Result;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Deliveries that a consumer may hold before they are handled, for every client with such a setting.
pub const PREFETCH: usize = 256;
/// The content type of every message, for every client with headers.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// The guarantee of a confirmed publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The server has received the message; a power cut may lose it.
    PageCache,
    /// The server has synced the message to the disk.
    Fsync,
}

/// The server and the names of one run, which no other run uses.
#[derive(Clone, Debug)]
pub struct Place {
    /// The server.
    pub url: String,
    /// The name of stream, queue, exchange and topic: letters and digits.
    pub name: String,
    pub durability: Durability,
}

impl Place {
    /// Returns the name of the consumers' group.
    pub fn group(&self) -> String {
        "workers".to_owned()
    }

    /// Returns the subject or routing key of every message.
    pub fn subject(&self) -> String {
        format!("{}.placed.v1", self.name)
    }
}

/// A library under test, connected to one place.
pub trait Contestant: Sized + Send {
    type Publisher: Publisher;
    type Consumer: Consumer;

    /// Connects, and creates stream and group where they are missing; the group begins with the first
    /// message.
    fn open(place: &Place) -> impl Future<Output = Result<Self>> + Send;

    fn publisher(&self) -> impl Future<Output = Result<Self::Publisher>> + Send;

    fn consumer(&self) -> impl Future<Output = Result<Self::Consumer>> + Send;

    /// Queries the server for the number of messages that the group has not settled. Consumers are closed by
    /// then.
    fn unsettled(&self) -> impl Future<Output = Result<u64>> + Send;
}

pub trait Publisher: Send + 'static {
    /// Publishes `total` times with at most `window` unconfirmed; returns when all are confirmed.
    fn publish(
        &mut self,
        payload: &Bytes,
        total: usize,
        window: usize,
    ) -> impl Future<Output = Result<()>> + Send;
}

pub trait Consumer: Send + 'static {
    /// Consumes `total` messages, at most `at_once` of them handled and not acknowledged; returns when the
    /// client reports that every acknowledgement is done.
    fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        arrived: impl FnMut(&[u8]) + Send,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Closes the consumer in an orderly way.
    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

/// Runs `total` turns of `once` in `tasks` tasks, for clients whose publish is one future.
pub async fn in_tasks<F, W>(total: usize, tasks: usize, once: F) -> Result<()>
where
    F: Fn() -> W + Clone + Send + Sync + 'static,
    W: Future<Output = Result<()>> + Send,
{
    if tasks <= 1 {
        for _ in 0..total {
            once().await?;
        }
        return Ok(());
    }
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let once = once.clone();
        let share = total / tasks + usize::from(task < total % tasks);
        running.spawn(async move {
            for _ in 0..share {
                once().await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// Returns a new id as text, as the transport writes it.
pub fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}
