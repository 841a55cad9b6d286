//! Publishes and consumes through one of our transports, in the same way in every row.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use event_client::confirm::Confirm;
use event_client::delivery::Delivery;
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::subscription::Subscription;
use event_client::transport::{self, Receipt, Subscribe, Topology, Transport};
use tokio::time::timeout;

use super::args::Load;
use super::figures::{Figure, figure, millis};
use crate::contestant::{CONTENT_TYPE, PREFETCH};

/// Publishes that are not confirmed yet.
const WINDOW: usize = 1024;
/// Acknowledgements that are not confirmed yet.
const AT_ONCE: usize = 64;
/// How long a delivery or the end of a backlog may take.
pub const STALLED: Duration = Duration::from_secs(120);
/// Messages that pass through a group before its measurement, so that connections and caches are warm.
pub const WARM_UP: usize = 200;

/// One transport and the body of its messages.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub transport: Arc<dyn Transport>,
    body: Bytes,
}

/// A group of a measurement.
#[derive(Clone, Copy, Debug)]
pub struct Spec<'a> {
    pub group: &'a str,
    pub pattern: &'a str,
    pub keyed: bool,
}

impl Spec<'_> {
    /// Returns the subscription of one member.
    pub fn subscribe(&self) -> Result<Subscribe> {
        let mut spec = Subscribe::group(Group::new(self.group)?, [Pattern::new(self.pattern)?]);
        spec.max_in_flight = PREFETCH;
        spec.keyed = self.keyed;
        Ok(spec)
    }
}

impl Traffic {
    /// Opens the transport at `url`.
    pub async fn open(url: &str, load: &Load) -> Result<Self> {
        let transport = transport::open(url.parse()?).await?;
        Ok(Self { transport, body: Bytes::from(vec![b'x'; load.body]) })
    }

    /// Creates groups without members, so that every message published from now on waits for them.
    pub async fn create(&self, specs: &[Spec<'_>]) -> Result<()> {
        let mut topology = Topology::default();
        for spec in specs {
            topology.add(&spec.subscribe()?);
        }
        self.transport.admin().apply(topology).await?;
        Ok(())
    }

    /// Returns a message with the usual body.
    pub fn message(&self, subject: &Subject) -> Message {
        Message::new(subject.clone(), CONTENT_TYPE, self.body.clone())
    }

    /// Publishes `total` messages and returns when all are confirmed; `make` gets their numbers.
    pub async fn publish(&self, total: usize, make: impl Fn(usize) -> Message) -> Result<()> {
        let mut waiting: VecDeque<Confirm<Receipt>> = VecDeque::with_capacity(WINDOW);
        for number in 0..total {
            if waiting.len() == WINDOW {
                waiting.pop_front().context("a full window")?.await?;
            }
            waiting.push_back(self.transport.publish(make(number)));
        }
        for confirm in waiting {
            confirm.await?;
        }
        Ok(())
    }

    /// Opens a member of the group.
    pub async fn subscribe(&self, spec: &Spec<'_>) -> Result<Subscription> {
        Ok(self.transport.subscribe(spec.subscribe()?).await?)
    }

    /// Publishes the messages of the warm-up, handles them, and ends the member.
    pub async fn warm_up(&self, spec: &Spec<'_>, make: impl Fn(usize) -> Message) -> Result<()> {
        let member = self.subscribe(spec).await?;
        self.publish(WARM_UP, make).await?;
        drain(&member, WARM_UP).await?;
        member.stop();
        Ok(())
    }

    /// Reads the operator's list of groups and their lag while `expected` messages are unsettled. Returns its time, and
    /// the part of the messages that it counted.
    pub async fn lag(&self, expected: usize) -> Result<Vec<Figure>> {
        let start = Instant::now();
        let groups = self.transport.admin().groups().await?;
        let time = start.elapsed();
        let counted: u64 = groups.iter().map(|group| group.waiting + group.in_flight).sum();
        let percent = counted as f64 / expected.max(1) as f64 * 100.0;
        Ok(vec![millis("lag", time), figure("lag counted %", percent)])
    }
}

/// Handles `total` messages; returns when every acknowledgement is confirmed.
pub async fn drain(member: &Subscription, total: usize) -> Result<()> {
    let mut waiting: VecDeque<Confirm<()>> = VecDeque::with_capacity(AT_ONCE);
    for number in 0..total {
        let delivery = loop {
            if let Some(delivery) = member.try_next() {
                break delivery;
            }
            // The next message of a key arrives only after the acknowledgement of the previous one.
            match waiting.pop_front() {
                Some(ack) => ack.await?,
                None => {
                    break next(member)
                        .await
                        .with_context(|| format!("after {number} of {total} messages"))?;
                }
            }
        };
        waiting.push_back(delivery.ack());
        if waiting.len() == AT_ONCE {
            waiting.pop_front().context("a full window")?.await?;
        }
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(())
}

/// Waits for the next delivery.
pub async fn next(member: &Subscription) -> Result<Delivery> {
    let delivery = timeout(STALLED, member.next()).await.context("no delivery arrived in time")?;
    delivery.context("the subscription ended")
}
