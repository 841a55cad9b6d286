//! Checks whether the exchange of events still has the bindings of the groups, and restores them.
//!
//! Deleting the exchange deletes all bindings, and declaring it again creates an empty exchange of the same name, which
//! accepts publishes and drops them. AMQP cannot list bindings. So one more queue, the mark, is bound to the empty
//! routing key, which no pattern of a group matches: a `mandatory` publish with that key is returned when the bindings
//! are deleted. Then all bindings in the list of groups are created again, and the mark last.

use std::sync::Arc;
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{BasicProperties, Confirmation, ExchangeKind};
use tokio::sync::watch;
use tokio::time::timeout;

use super::client::Client;
use super::connection::{COMMAND, command};
use super::declare::{arguments, number};
use super::error::{amqp, is_missing, is_passing, timeout as late};
use super::names::binding;
use super::registry::{Registrar, Registry};
use event_transport::backoff::jitter;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;
use event_transport::{Action, Change, Difference, Provision};

/// Interval of the checks for the mark.
const LOOK: Duration = Duration::from_secs(30);

/// The exchange of one namespace, as one connection sees it.
#[derive(Debug)]
pub(super) struct Bindings {
    client: Arc<Client>,
    registrar: Arc<Registrar>,
    /// The problem with the exchange, for the health of members.
    trouble: watch::Sender<Option<String>>,
}

impl Bindings {
    pub(super) fn new(client: Arc<Client>, registrar: Arc<Registrar>) -> Self {
        Self { client, registrar, trouble: watch::Sender::new(None) }
    }

    /// Watches the problem with the exchange.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Checks for the mark periodically.
    pub(super) async fn watch(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(jitter(LOOK)) => {}
                () = self.client.closing.cancelled() => return,
            }
            if let Err(error) = self.stand().await {
                tracing::debug!(%error, "the exchange is checked again later");
            }
        }
    }

    /// Checks that the exchange and its bindings exist; creates missing ones as far as `provision` allows.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when they are missing and may not be created.
    pub(super) async fn stand(&self) -> Result<()> {
        let result = self.look(self.client.config.provision).await;
        match &result {
            Err(error) if is_passing(error) => {}
            Err(error) => self.tell(Some(error.to_string())),
            Ok(()) => self.tell(None),
        }
        result
    }

    fn tell(&self, trouble: Option<String>) {
        self.trouble.send_if_modified(|now| {
            let changed = *now != trouble;
            *now = trouble;
            changed
        });
    }

    /// Like `stand`, under another `provision`, for an operator's command.
    pub(super) async fn look(&self, provision: Provision) -> Result<()> {
        if self.marked().await? {
            return Ok(());
        }
        // A namespace without groups has nothing to restore, and gets its mark with the first group.
        let groups = self.client.declarer.counts(self.client.names.registry()).await?.is_some();
        if !provision.creates() {
            let lost = groups && self.registrar.read().await?.marked;
            let object = format!("bindings of exchange {}", self.client.names.events());
            return if lost { Err(provision.missing(object)) } else { Ok(()) };
        }
        self.client.declarer.exchange(self.client.names.events(), ExchangeKind::Topic).await?;
        if !groups {
            return Ok(());
        }
        let (mut lost, mut restored) = (false, 0);
        self.registrar
            .change_with(async |list| {
                if self.marked().await? {
                    return Ok(false); // another connection did it
                }
                lost = list.marked;
                restored = self.restore(list).await?;
                Ok(true)
            })
            .await?;
        if lost {
            tracing::error!(
                exchange = %self.client.names.events(), groups = restored,
                "the exchange was deleted, and with it the bindings of all groups; they are created again, and messages published in between reached no group"
            );
        }
        Ok(())
    }

    /// Binds the queues of all groups, and the mark.
    async fn restore(&self, list: &mut Registry) -> Result<usize> {
        let mut restored = 0;
        for (name, record) in &list.groups {
            let queue = self.client.names.group(&Group::new(name)?);
            if self.client.declarer.counts(queue.clone()).await?.is_none() {
                continue; // the next subscriber creates it again
            }
            for pattern in record.patterns() {
                self.client.declarer.bind(&queue, self.client.names.events(), binding(&pattern)).await?;
            }
            restored += 1;
        }
        self.mark(list).await?;
        Ok(restored)
    }

    /// Binds the mark. Its queue drops every message at once.
    pub(super) async fn mark(&self, list: &mut Registry) -> Result<()> {
        let queue = self.client.names.mark();
        self.client.declarer.declare(queue.clone(), arguments([("x-message-ttl", number(0))])).await?;
        self.client.declarer.bind(&queue, self.client.names.events(), ShortString::default()).await?;
        list.marked = true;
        Ok(())
    }

    /// Whether the mark is bound; `true` where that cannot be found out.
    async fn marked(&self) -> Result<bool> {
        if self.client.publish.blocked().is_some() {
            return Ok(true);
        }
        let channel = self.client.publish.confirming().await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (exchange, properties) = (self.client.names.events(), BasicProperties::default());
        let probe = async {
            channel.basic_publish(exchange, ShortString::default(), options, &[], properties).await?.await
        };
        let marked = match timeout(COMMAND, probe).await {
            Ok(Ok(Confirmation::Ack(returned))) => Ok(returned.is_none()),
            Ok(Ok(_)) => {
                Err(Error::new(ErrorKind::Unavailable, "the broker refused a probe of the exchange"))
            }
            Ok(Err(error)) if is_missing(&error) => return Ok(false),
            Ok(Err(error)) => match amqp(error) {
                // A client that may not publish cannot check.
                error if error.kind() == ErrorKind::Denied => return Ok(true),
                error => return Err(error),
            },
            Err(_) => Err(late("probe the exchange")),
        };
        let _ = command("close", channel.close(200, "seen".into())).await;
        marked
    }

    /// Returns the change that the exchange needs.
    pub(super) async fn plan(&self, list: &Registry) -> Result<Option<Change>> {
        let object = format!("exchange {}", self.client.names.events());
        if !self.client.declarer.has_exchange(self.client.names.events()).await? {
            let kind = Difference::new("type", None, "topic");
            return Ok(Some(Change::new(object, Action::Create, vec![kind])));
        }
        if !list.marked || self.marked().await? {
            return Ok(None);
        }
        let bindings =
            Difference::new("bindings", Some("none".into()), format!("of {} groups", list.groups.len()));
        Ok(Some(Change::new(object, Action::Update, vec![bindings])))
    }
}
