//! The channels from which a fetching task receives.

use async_nats::Subscriber;
use tokio::sync::mpsc;

use crate::group::Groups;
use crate::member::{Command, Member};
use event_transport::error::Result;

/// The inputs of a fetching task.
pub(super) struct Inputs {
    /// Receives messages, and the server's status messages about pulls.
    pub(super) messages: Subscriber,
    /// Receives the group's record when it changes.
    pub(super) changes: Subscriber,
    pub(super) news: Subscriber,
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
}

impl Inputs {
    /// Subscribes to `inbox`, to the group's record and to the notifications of new topics.
    pub(super) async fn open(
        groups: &Groups,
        member: &Member,
        inbox: &str,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> Result<Self> {
        let client = &groups.client;
        Ok(Self {
            messages: client.subscribe(format!("{inbox}.>")).await?,
            changes: client.subscribe(groups.group_subject(&member.group)).await?,
            news: client.subscribe(client.names.news()).await?,
            commands,
        })
    }
}
