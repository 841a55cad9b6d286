//! Opens subscriptions: a group's streams and consumers exist before its first delivery.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;

use super::client::Client;
use super::dead_letters::DeadLetters;
use super::delayed::Delayed;
use super::error::closed;
use super::fetch::Fetcher;
use super::group::{Groups, Record};
use super::member::Member;
use super::presence::{Participant, Presence};
use super::{broadcast, keyed};
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::subscription::Subscription;
use event_transport::supervise;
use event_transport::{Mode, Subscribe};

/// Opens the subscriptions of one connection.
pub(super) struct Subscriber {
    client: Arc<Client>,
    presence: Arc<Presence>,
    groups: Arc<Groups>,
    dead_letters: Arc<DeadLetters>,
    delayed: Arc<Delayed>,
}

impl Subscriber {
    pub(super) fn new(dead_letters: &Arc<DeadLetters>, delayed: &Arc<Delayed>) -> Self {
        let groups = &dead_letters.groups;
        Self {
            client: groups.client.clone(),
            presence: groups.presence.clone(),
            groups: groups.clone(),
            dead_letters: dead_letters.clone(),
            delayed: delayed.clone(),
        }
    }

    pub(super) async fn subscribe(&self, spec: Subscribe) -> Result<Subscription> {
        if self.client.outbound.is_closing() {
            return Err(closed());
        }
        let spec = spec.checked()?;
        self.delayed.start_mover().await?;
        match spec.mode.clone() {
            Mode::Broadcast => {
                let (subscription, task) = broadcast::subscribe(&self.groups, spec).await?;
                self.spawn(supervise::run("nats broadcast", task, || {}));
                Ok(subscription)
            }
            Mode::Group(group) => {
                self.presence.open().await?;
                let record = self.groups.join_group(&spec, self.client.config.provision).await?;
                if spec.keyed {
                    return self.keyed(group, record, spec.max_in_flight).await;
                }
                self.group(group, record, spec.max_in_flight).await
            }
        }
    }

    async fn group(&self, group: Group, record: Record, max_in_flight: usize) -> Result<Subscription> {
        let (feed, subscription) = Subscription::channel(max_in_flight);
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let member = Member::new(&self.dead_letters, group, record.lease(), commands);
        let fetcher = Fetcher::open(&self.groups, &member, feed, record, command_receiver).await?;
        let ended = member.clone();
        let participant: Arc<dyn Participant> = member;
        self.presence.add(&participant);
        self.spawn(supervise::run("nats fetch", fetcher.run(), move || {
            ended.live.store(false, Ordering::Release);
            ended.ended.send_replace(true);
        }));
        Ok(subscription)
    }

    async fn keyed(&self, group: Group, record: Record, max_in_flight: usize) -> Result<Subscription> {
        let (subscription, participant, task) =
            keyed::subscribe(&self.dead_letters, group, record, max_in_flight).await?;
        self.presence.add(&participant);
        self.spawn(async move {
            task.await;
            drop(participant);
        });
        Ok(subscription)
    }

    /// Runs the task of a subscription. It keeps the task that moves delayed messages alive.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let delayed = self.delayed.clone();
        self.client.tasks.spawn(async move {
            task.await;
            drop(delayed);
        });
    }
}
