//! The inputs of the leader's loop: messages of its consumers, commands of its consumers' handlers, and notifications.

use async_nats::Subscriber;
use tokio::sync::{mpsc, watch};

use crate::error::{Error, ErrorKind, Result};
use crate::transport::nats::keyed::member::{Command, KeyedMember};

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
        let connection = &member.connection;
        let listen = async |subject: String| {
            connection.client.subscribe(subject).await.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "the subscription did not reach the server").because(error)
            })
        };
        Ok(Self {
            commands,
            messages: listen(format!("{inbox}.>")).await?,
            changes: listen(connection.group_subject(&member.group)).await?,
            news: listen(connection.names.news()).await?,
            led: listen(connection.names.led(&member.group)).await?,
            connects: connection.connects.clone(),
            closing: member.closing(),
        })
    }
}
