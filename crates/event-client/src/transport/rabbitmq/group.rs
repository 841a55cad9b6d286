//! A durable group: one quorum queue with all messages for the group, from whatever topics they come.
//!
//! There is one queue for each group, not for each group and topic: patterns may span topics, all waiting messages are
//! in one place, and one consumer with one prefetch serves it. The order of a topic is the queue's order.

use std::sync::Arc;

use lapin::types::FieldTable;
use tokio::sync::{mpsc, oneshot};

use super::client_bus::Holding;
use super::declare::{arguments, number, word};
use super::error::is_passing;
use super::names::binding;
use super::registry::{Record, Registry};
use super::settle::Settler;
use super::{Inner, member};
use crate::confirm::Answer;
use crate::delivery::{Settlement, Token};
use crate::error::{ErrorKind, Result};
use crate::subject::{Group, Pattern};
use crate::subscription::Subscription;
use crate::supervise;
use crate::transport::topology::compare_group;
use crate::transport::{Action, Change, Mode, Provision, Subscribe};

/// A command to a member.
pub(super) enum Command {
    Settle(Token, Settlement, Answer<()>),
    Progress(Token, Answer<()>),
    Status(oneshot::Sender<Holding>),
    GiveUp(oneshot::Sender<Holding>),
    End(oneshot::Sender<Holding>),
}

impl Record {
    pub(super) fn patterns(&self) -> Vec<Pattern> {
        self.filters.iter().filter_map(|filter| Pattern::new(filter).ok()).collect()
    }
}

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

impl Inner {
    /// Opens a subscription of a group.
    pub(super) async fn subscribe_group(
        self: &Arc<Self>,
        group: Group,
        spec: Subscribe,
    ) -> Result<Subscription> {
        // Opens its inbox first: a status query would not count a member without an inbox.
        self.client_bus.inbox().await?;
        match self.bindings.stand().await {
            Err(error) if is_passing(&error) => tracing::debug!(%error, "the exchange is checked later"),
            looked => looked?,
        }
        self.provide(&spec, self.config.provision).await?;
        let (sender, subscription) = Subscription::channel(spec.max_in_flight);
        let (commands, incoming) = mpsc::unbounded_channel();
        let id = self.client_bus.number();
        let entry = (group.to_string(), commands.clone());
        self.client_bus.members.lock().expect("not poisoned").insert(id, entry);
        let settler = Arc::new(Settler(commands));
        let member = member::Member::new(self.clone(), group, spec, sender, incoming, settler, id);
        let session = match member.open().await {
            Ok(session) => session,
            Err(error) => {
                self.client_bus.members.lock().expect("not poisoned").remove(&id);
                return Err(error);
            }
        };
        self.start_mover();
        let inner = self.clone();
        tokio::spawn(supervise::run("rabbitmq member", member.run(session), move || {
            inner.client_bus.members.lock().expect("not poisoned").remove(&id);
        }));
        Ok(subscription)
    }

    /// Creates or changes the group as `spec` requires, as far as `provision` allows; returns the change that was
    /// needed.
    pub(super) async fn provide(&self, spec: &Subscribe, provision: Provision) -> Result<Option<Change>> {
        let Mode::Group(group) = &spec.mode else { return Ok(None) };
        // An existing group continues where it was, whatever start is requested.
        let startable = |change: Option<&Change>| match change {
            Some(change) if change.action == Action::Create => self.capabilities.check_start(spec.start),
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
            self.declarer.settle_names(&self.names).await;
        }
        Ok(done)
    }

    /// Checks that a known group has its queue and its bindings, and creates missing ones: either may have been
    /// deleted.
    async fn stand(&self, group: &Group, spec: &Subscribe) -> Result<()> {
        let queue = self.names.group(group);
        if self.declarer.counts(queue.clone()).await?.is_none() {
            tracing::error!(%group, "the group's queue was deleted; it is created again, empty");
            self.declare_dead(group.as_str()).await?;
            self.declare_group(group, spec.keyed).await?;
        }
        for pattern in &spec.filters {
            self.declarer.bind(&queue, self.names.events(), binding(pattern)).await?;
        }
        Ok(())
    }

    /// Creates a group again whose queue is missing.
    pub(super) async fn restore(&self, group: &Group, spec: &Subscribe) -> Result<()> {
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
        self.declarer.settle_names(&self.names).await;
        Ok(())
    }

    /// Creates queues and bindings of a group that is new or has other filters.
    async fn make(&self, group: &Group, spec: &Subscribe, list: &Registry) -> Result<()> {
        let queue = self.names.group(group);
        self.declare_dead(group.as_str()).await?;
        self.declare_group(group, spec.keyed).await?;
        let old = list.groups.get(group.as_str()).map(Record::patterns).unwrap_or_default();
        for pattern in spec.filters.iter().filter(|pattern| !old.contains(pattern)) {
            self.declarer.bind(&queue, self.names.events(), binding(pattern)).await?;
        }
        for pattern in old.iter().filter(|pattern| !spec.filters.contains(pattern)) {
            self.declarer.unbind(&queue, self.names.events(), binding(pattern)).await?;
        }
        Ok(())
    }

    /// Declares the group's queue. The broker itself makes a message a dead letter when its consumers died too often.
    pub(super) async fn declare_group(&self, group: &Group, keyed: bool) -> Result<()> {
        let dead = self.names.dead(group.as_str());
        let mut table = arguments([
            ("x-queue-type", word("quorum")),
            ("x-delivery-limit", number(self.config.delivery_limit.into())),
            ("x-overflow", word("reject-publish")),
            ("x-dead-letter-strategy", word("at-least-once")),
            ("x-dead-letter-exchange", word("")),
            ("x-dead-letter-routing-key", word(dead.as_str())),
        ]);
        if keyed {
            table.insert("x-single-active-consumer".into(), true.into());
        }
        self.declare_known(self.names.group(group), table).await
    }

    pub(super) async fn declare_dead(&self, group: &str) -> Result<()> {
        let table = arguments([
            ("x-queue-type", word("quorum")),
            // Reading the letters takes them and returns them.
            ("x-delivery-limit", number(1_000_000_000)),
        ]);
        self.declare_known(self.names.dead(group), table).await
    }

    /// Declares a queue that may exist already: if it has other settings, the error reports the difference.
    async fn declare_known(&self, queue: lapin::types::ShortString, table: FieldTable) -> Result<()> {
        let shown = queue.clone();
        self.declarer.declare(queue, table).await.map_err(|error| match error.kind() {
            ErrorKind::Config => self.config.provision.differs(format!("queue {shown}"), error),
            _ => error,
        })
    }
}
