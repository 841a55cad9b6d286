//! The inputs of the leader's loop: messages of its consumers, commands of its consumers' handlers, and notifications.

use async_nats::Subscriber;
use tokio::sync::{mpsc, watch};

use crate::keyed::member::{Command, KeyedMember};
use event_transport::error::Result;

pub(super) struct Inputs {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    /// Receives messages, and the status of pulls.
    pub(super) messages: Subscriber,
    /// Receives the group's record when it changes.
    pub(super) changes: Subscriber,
    /// Receives notifications of new topics and replays.
    pub(super) news: Subscriber,
    /// Receives a notification when the group has lost its leader.
    pub(super) led: Subscriber,
    /// Changes with every new connection to the server.
    pub(super) connects: watch::Receiver<u64>,
    /// Changes when the member has to release everything.
    pub(super) closing: watch::Receiver<bool>,
}

impl Inputs {
    /// Subscribes to everything that concerns the member. Messages arrive under `inbox`.
    pub(super) async fn open(
        member: &KeyedMember,
        commands: mpsc::UnboundedReceiver<Command>,
        inbox: &str,
    ) -> Result<Self> {
        let (client, groups) = (&member.client, &member.dead_letters.groups);
        Ok(Self {
            commands,
            messages: client.subscribe(format!("{inbox}.>")).await?,
            changes: client.subscribe(groups.group_subject(&member.group)).await?,
            news: client.subscribe(client.names.news()).await?,
            led: client.subscribe(client.names.led(&member.group)).await?,
            connects: client.link.connects.clone(),
            closing: member.closing(),
        })
    }
}
