//! What a contestant must be able to do; one file each below `contestants/`.

use std::future::Future;

use anyhow::Result;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Deliveries that a consumer may hold before they are handled, for everybody who lets that be set.
pub const PREFETCH: usize = 256;
/// What every message says it is, for everybody who has headers.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// What must be true when a publish is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// The server has it; a power cut may lose it.
    PageCache,
    /// The server has synced it to the disk.
    Fsync,
}

/// Where one run takes place: names that no other run uses.
#[derive(Clone, Debug)]
pub struct Place {
    /// The server.
    pub url: String,
    /// Stream, queue, exchange, topic: letters and digits.
    pub name: String,
    pub durability: Durability,
}

impl Place {
    /// The consumers' group.
    pub fn group(&self) -> String {
        "workers".to_owned()
    }

    /// The subject or routing key of every message.
    pub fn subject(&self) -> String {
        format!("{}.placed.v1", self.name)
    }
}

/// A library under test, connected to one place.
pub trait Contestant: Sized + Send {
    type Publisher: Publisher;
    type Consumer: Consumer;

    /// Connects, and makes stream and group where they are missing; the group begins with the first message.
    fn open(place: &Place) -> impl Future<Output = Result<Self>> + Send;

    fn publisher(&self) -> impl Future<Output = Result<Self::Publisher>> + Send;

    fn consumer(&self) -> impl Future<Output = Result<Self::Consumer>> + Send;

    /// Asks the server how many messages the group has not settled. Consumers are closed by then.
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
    /// Takes `total` messages, at most `at_once` of them handled and not acknowledged; returns when the client says
    /// that every acknowledgement is done.
    fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        arrived: impl FnMut(&[u8]) + Send,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Leaves in good order.
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

/// A fresh id as text, as ours writes it.
pub fn id() -> String {
    uuid::Uuid::now_v7().to_string()
}
