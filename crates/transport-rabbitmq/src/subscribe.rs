//! Opens subscriptions of groups: prepares the group's queue and starts the member that serves the subscription.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::client::Client;
use super::copies::Copies;
use super::dead_letters::DeadLetters;
use super::delay_queues::DelayQueues;
use super::delayed::Delayed;
use super::deliveries::Deliveries;
use super::group::Groups;
use super::journal::Journal;
use super::mailbox::Mailbox;
use super::member::Member;
use super::members::Members;
use super::republish::Republisher;
use super::settle::Settler;
use event_transport::Subscribe;
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::subscription::Subscription;
use event_transport::supervise;

/// The subscriptions of one connection, and the features that their members use.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) client: Arc<Client>,
    pub(super) republisher: Republisher,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) members: Arc<Members>,
    pub(super) groups: Arc<Groups>,
    pub(super) delay_queues: Arc<DelayQueues>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) delayed: Arc<Delayed>,
}

impl Subscriber {
    /// Opens a subscription of a group.
    pub(super) async fn subscribe(&self, group: Group, spec: Subscribe) -> Result<Subscription> {
        // Opens its inbox first: a status query would not count a member without an inbox.
        self.mailbox.inbox().await?;
        self.groups.prepare(&spec).await?;
        let (feed, subscription) = Subscription::channel(spec.max_in_flight);
        let (sender, commands) = mpsc::unbounded_channel();
        let entry = self.members.join(&group, sender.clone());
        let copies = Copies::new(group.clone(), self.delay_queues.clone(), self.dead_letters.clone());
        let journal = Journal::new(self.client.clone(), self.republisher.clone(), group.clone());
        let settler = Arc::new(Settler(sender));
        let deliveries = Deliveries::new(self.client.clone(), group.clone(), &spec, settler, copies, journal);
        let member = Member {
            client: self.client.clone(),
            groups: self.groups.clone(),
            group,
            spec,
            feed,
            commands,
            deliveries,
            gone: false,
            _entry: entry,
        };
        let session = member.open().await?;
        self.delayed.start_mover();
        tokio::spawn(supervise::run("rabbitmq member", member.run(session), || {}));
        Ok(subscription)
    }
}
