//! A durable group: one quorum queue with all messages for the group, from whatever topics they come.
//!
//! There is one queue for each group, not for each group and topic: patterns may span topics, all waiting messages are
//! in one place, and one consumer with one prefetch serves it. The order of a topic is the queue's order.

use std::sync::Arc;

use tokio::sync::watch;

use super::bindings::Bindings;
use super::client::Client;
use super::dead_letters::DeadLetters;
use super::declare::{arguments, number, word};
use super::error::is_passing;
use super::names::binding;
use super::registry::{Record, Registrar, Registry};
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::topology::compare_group;
use event_transport::{Action, Change, Mode, Provision, Subscribe};

/// Returns the change that the group needs to fulfil `spec`. The order of keys is a setting of its queue that cannot be
/// changed.
pub(super) fn compare(list: &Registry, spec: &Subscribe) -> Option<Change> {
    let Mode::Group(group) = &spec.mode else { return None };
    let record = list.groups.get(group.as_str());
    let patterns = record.map(Record::patterns).unwrap_or_default();
    let mut change = compare_group(spec, record.map(|record| (patterns.as_slice(), record.keyed)))?;
    if record.is_some_and(|record| record.keyed != spec.keyed) {
        change.action = Action::Blocked;
    }
    Some(change)
}

/// The queues of the groups.
#[derive(Debug)]
pub(super) struct Groups {
    client: Arc<Client>,
    registrar: Arc<Registrar>,
    bindings: Arc<Bindings>,
    dead_letters: Arc<DeadLetters>,
}

impl Groups {
    pub(super) fn new(
        client: Arc<Client>,
        registrar: Arc<Registrar>,
        bindings: Arc<Bindings>,
        dead_letters: Arc<DeadLetters>,
    ) -> Self {
        Self { client, registrar, bindings, dead_letters }
    }

    /// Watches the problem with the exchange of events: without bindings the queues stay empty.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.bindings.trouble()
    }

    /// Makes sure that the group of `spec` has its queue and receives its messages.
    pub(super) async fn prepare(&self, spec: &Subscribe) -> Result<()> {
        match self.bindings.stand().await {
            Err(error) if is_passing(&error) => tracing::debug!(%error, "the exchange is checked later"),
            looked => looked?,
        }
        self.provide(spec, self.client.config.provision).await.map(drop)
    }

    /// Creates or changes the group as `spec` requires, as far as `provision` allows; returns the change that was
    /// needed.
    pub(super) async fn provide(&self, spec: &Subscribe, provision: Provision) -> Result<Option<Change>> {
        let Mode::Group(group) = &spec.mode else { return Ok(None) };
        // An existing group continues where it was, whatever start is requested.
        let startable = |change: Option<&Change>| match change {
            Some(change) if change.action == Action::Create => {
                self.client.capabilities.check_start(spec.start)
            }
            _ => Ok(()),
        };
        if !provision.creates() {
            let list = self.registrar.read().await?;
            let change = compare(&list, spec);
            startable(change.as_ref())?;
            provision.group(change.as_ref())?;
            return Ok(change);
        }
        let (mut done, mut new) = (None, false);
        self.registrar
            .change_with(async |list| {
                done = compare(list, spec);
                startable(done.as_ref())?;
                let follows = provision.group(done.as_ref())?;
                new = !list.groups.contains_key(group.as_str());
                if follows {
                    self.make(group, spec, list).await?;
                    let rooms = list.groups.get(group.as_str()).map_or(0, |record| record.rooms);
                    let filters = spec.filters.iter().map(ToString::to_string).collect();
                    list.groups.insert(group.to_string(), Record { filters, keyed: spec.keyed, rooms });
                    list.buried.retain(|name| name != group.as_str());
                } else {
                    self.stand(group, spec).await?;
                }
                let marked = list.marked;
                if !marked {
                    self.bindings.mark(list).await?;
                }
                Ok(follows || !marked)
            })
            .await?;
        if new {
            self.client.declarer.settle_names().await;
        }
        Ok(done)
    }

    /// Checks that a known group has its queue and its bindings, and creates missing ones: either may have been
    /// deleted.
    async fn stand(&self, group: &Group, spec: &Subscribe) -> Result<()> {
        let queue = self.client.names.group(group);
        if self.client.declarer.counts(queue.clone()).await?.is_none() {
            tracing::error!(%group, "the group's queue was deleted; it is created again, empty");
            self.dead_letters.declare(group.as_str()).await?;
            self.declare_group(group, spec.keyed).await?;
        }
        for pattern in &spec.filters {
            self.client.declarer.bind(&queue, self.client.names.events(), binding(pattern)).await?;
        }
        Ok(())
    }

    /// Creates the queue of an open subscription again, which is missing; returns whether the group still exists.
    pub(super) async fn recover(&self, group: &Group, spec: &Subscribe) -> Result<bool> {
        let list = self.registrar.read().await?;
        if list.buried.iter().any(|name| name == group.as_str()) {
            return Ok(false);
        }
        let provision = self.client.config.provision;
        if !provision.creates() {
            return Err(provision.missing(format!("queue {}", self.client.names.group(group))));
        }
        // A user deleted it, or the broker was killed before it had stored the queue.
        tracing::warn!(%group, "the group's queue is missing; it is created again, empty");
        self.restore(group, spec).await?;
        Ok(true)
    }

    /// Creates a group again whose queue is missing.
    async fn restore(&self, group: &Group, spec: &Subscribe) -> Result<()> {
        self.bindings.stand().await?;
        self.registrar
            .change_with(async |list| {
                let known = list.groups.remove(group.as_str());
                let as_known = known.as_ref().map(|record| Subscribe {
                    filters: record.patterns(),
                    keyed: record.keyed,
                    ..spec.clone()
                });
                let spec = as_known.as_ref().unwrap_or(spec);
                self.make(group, spec, list).await?;
                let filters = spec.filters.iter().map(ToString::to_string).collect();
                let rooms = known.map_or(0, |record| record.rooms);
                list.groups.insert(group.to_string(), Record { filters, keyed: spec.keyed, rooms });
                Ok(true)
            })
            .await?;
        self.client.declarer.settle_names().await;
        Ok(())
    }

    /// Creates queues and bindings of a group that is new or has other filters.
    async fn make(&self, group: &Group, spec: &Subscribe, list: &Registry) -> Result<()> {
        let queue = self.client.names.group(group);
        self.dead_letters.declare(group.as_str()).await?;
        self.declare_group(group, spec.keyed).await?;
        let old = list.groups.get(group.as_str()).map(Record::patterns).unwrap_or_default();
        for pattern in spec.filters.iter().filter(|pattern| !old.contains(pattern)) {
            self.client.declarer.bind(&queue, self.client.names.events(), binding(pattern)).await?;
        }
        for pattern in old.iter().filter(|pattern| !spec.filters.contains(pattern)) {
            self.client.declarer.unbind(&queue, self.client.names.events(), binding(pattern)).await?;
        }
        Ok(())
    }

    /// Declares the group's queue. The broker itself makes a message a dead letter when its consumers died too often.
    async fn declare_group(&self, group: &Group, keyed: bool) -> Result<()> {
        let dead = self.client.names.dead(group.as_str());
        let mut table = arguments([
            ("x-queue-type", word("quorum")),
            ("x-delivery-limit", number(self.client.config.delivery_limit.into())),
            ("x-overflow", word("reject-publish")),
            ("x-dead-letter-strategy", word("at-least-once")),
            ("x-dead-letter-exchange", word("")),
            ("x-dead-letter-routing-key", word(dead.as_str())),
        ]);
        if keyed {
            table.insert("x-single-active-consumer".into(), true.into());
        }
        self.client.declare_known(self.client.names.group(group), table).await
    }
}
