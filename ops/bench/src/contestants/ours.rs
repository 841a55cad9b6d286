//! Runs our transport with opaque bytes, the same code on every broker: the URL decides. With `SURE`, the
//! confirmation of each acknowledgement is awaited; otherwise only that of the last one, which settles all
//! before it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use event_client::confirm::Confirm;
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::subscription::Subscription;
use event_client::transport::{self, Receipt, Start, Subscribe, Transport};

use crate::contestant::{CONTENT_TYPE, Consumer, Contestant, Durability, PREFETCH, Place, Publisher};

pub struct Ours<const SURE: bool> {
    place: Place,
    transport: Arc<dyn Transport>,
}

impl<const SURE: bool> Ours<SURE> {
    fn spec(&self) -> Result<Subscribe> {
        let filter = Pattern::new(format!("{}.>", self.place.name))?;
        let mut spec = Subscribe::group(Group::new(self.place.group())?, [filter]);
        spec.start = if self.transport.capabilities().replay { Start::Earliest } else { Start::New };
        // The raw NATS client pulls again when half of its messages have arrived: the same number here.
        spec.max_in_flight =
            if self.place.url.starts_with("nats") { PREFETCH + PREFETCH / 2 } else { PREFETCH };
        Ok(spec)
    }
}

impl<const SURE: bool> Contestant for Ours<SURE> {
    type Publisher = OurPublisher;
    type Consumer = OurConsumer<SURE>;

    async fn open(place: &Place) -> Result<Self> {
        // JetStream does not report to its clients how it syncs.
        let told = if place.durability == Durability::Fsync && place.url.starts_with("nats") {
            "?sync=always"
        } else {
            ""
        };
        let transport = transport::open(format!("{}{told}", place.url).parse()?).await?;
        let this = Self { place: place.clone(), transport };
        // Create the group now. A group that exists already holds the backlog of this run: subscribing and leaving
        // would only fetch its first messages and release them.
        let group = Group::new(this.place.group())?;
        let known = this.transport.admin().groups().await?;
        if !known.iter().any(|one| one.group == group) {
            this.transport.subscribe(this.spec()?).await?.stop();
        }
        Ok(this)
    }

    async fn publisher(&self) -> Result<OurPublisher> {
        Ok(OurPublisher { transport: self.transport.clone(), subject: Subject::new(self.place.subject())? })
    }

    async fn consumer(&self) -> Result<OurConsumer<SURE>> {
        let subscription = self.transport.subscribe(self.spec()?).await?;
        Ok(OurConsumer { subscription })
    }

    async fn unsettled(&self) -> Result<u64> {
        // Messages that a closed consumer released may not have returned to the group yet.
        let end = Instant::now() + Duration::from_secs(1);
        loop {
            let groups = self.transport.admin().groups().await?;
            let group = groups
                .into_iter()
                .find(|one| one.group.as_str() == self.place.group())
                .context("no group")?;
            let left = group.waiting + group.in_flight;
            if left == 0 || Instant::now() > end {
                return Ok(left);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub struct OurPublisher {
    transport: Arc<dyn Transport>,
    subject: Subject,
}

impl Publisher for OurPublisher {
    async fn publish(&mut self, payload: &Bytes, total: usize, window: usize) -> Result<()> {
        let mut waiting: VecDeque<Confirm<Receipt>> = VecDeque::with_capacity(window);
        for _ in 0..total {
            if waiting.len() == window {
                waiting.pop_front().context("a full window")?.await?;
            }
            let message = Message::new(self.subject.clone(), CONTENT_TYPE, payload.clone());
            waiting.push_back(self.transport.publish(message));
        }
        for confirm in waiting {
            confirm.await?;
        }
        Ok(())
    }
}

pub struct OurConsumer<const SURE: bool> {
    subscription: Subscription,
}

impl<const SURE: bool> Consumer for OurConsumer<SURE> {
    async fn consume(
        &mut self,
        total: usize,
        at_once: usize,
        mut arrived: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let mut waiting: VecDeque<Confirm<()>> = VecDeque::with_capacity(at_once);
        for _ in 0..total {
            let delivery = self.subscription.next().await.context("the subscription ended")?;
            arrived(&delivery.message().payload);
            waiting.push_back(delivery.ack());
            if waiting.len() == at_once {
                let first = waiting.pop_front().context("a full window")?;
                if SURE {
                    first.await?;
                }
            }
        }
        while let Some(last) = waiting.pop_back() {
            last.await?;
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.subscription.stop();
        Ok(())
    }
}
