//! The administration of a RabbitMQ bus: dead letters, groups and their lag.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use super::bindings::Bindings;
use super::client::Client;
use super::dead_letters::{DeadLetters, Fate};
use super::delay_queues::{self, DelayQueues};
use super::diagnose::diagnose;
use super::group::{Groups, compare};
use super::members::Members;
use super::queries::{Ask, Holding};
use super::registry::{Record, Registrar, Registry};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;
use event_transport::{
    Action, Admin, Change, DeadLetter, DeadLetterFilter, Difference, Finding, GroupStatus, Mode, Provision,
    Start, Topology,
};

/// How long a queue may take to get a new leader.
const ELECTED: Duration = Duration::from_secs(2);

fn unknown(group: &Group) -> Error {
    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
}

/// The broker's message counts of a group.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    ready: u64,
    consumers: u64,
    rooms: u64,
    dead: u64,
}

/// The operator's view of one bus.
#[derive(Debug)]
pub(super) struct Administration {
    pub(super) client: Arc<Client>,
    pub(super) registrar: Arc<Registrar>,
    pub(super) bindings: Arc<Bindings>,
    pub(super) groups: Arc<Groups>,
    pub(super) dead_letters: Arc<DeadLetters>,
    pub(super) delay_queues: Arc<DelayQueues>,
    pub(super) members: Arc<Members>,
}

impl Administration {
    async fn count(&self, name: &str, record: &Record) -> Result<Counted> {
        let group = Group::new(name)?;
        let mut counted = Counted::default();
        if let Some(counts) = self.client.declarer.counts(self.client.names.group(&group)).await? {
            (counted.ready, counted.consumers) = (counts.ready, counts.consumers);
        }
        for length in delay_queues::lengths(record.rooms) {
            counted.rooms += self.client.declarer.ready(self.client.names.retry(&group, length)).await?;
        }
        counted.dead = self.client.declarer.ready(self.client.names.dead(name)).await?;
        Ok(counted)
    }

    /// The broker counts the waiting messages, and the members report the messages that they hold, each at a different
    /// moment. A message in transit between them may be in neither count, so a group that seems idle is counted again
    /// until two results agree.
    async fn status(&self) -> Result<Vec<GroupStatus>> {
        let list = self.registrar.read().await?;
        let (mut before, patience) = (None, Instant::now() + ELECTED);
        let mut looks = 0;
        while looks < 5 {
            let look = self.look(&list).await?;
            // A queue whose leader is being elected counts as empty and without consumers, although its members are
            // connected.
            let silent = |(name, counted): (&String, &Counted)| {
                counted.consumers == 0 && look.1.iter().any(|held| held.live && held.group == *name)
            };
            if look.0.iter().any(silent) && Instant::now() < patience {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            looks += 1;
            let idle = |(name, counted): (&String, &Counted)| {
                counted.ready + counted.rooms == 0
                    && look
                        .1
                        .iter()
                        .filter(|held| held.group == *name)
                        .all(|held| held.in_flight + held.held == 0)
            };
            if !look.0.iter().any(idle) || before.as_ref() == Some(&look) {
                return statuses(&list, &look);
            }
            before = Some(look);
        }
        statuses(&list, &before.expect("looked five times"))
    }

    async fn look(&self, list: &Registry) -> Result<(HashMap<String, Counted>, Vec<Holding>)> {
        let mut counted = HashMap::new();
        for (name, record) in &list.groups {
            counted.insert(name.clone(), self.count(name, record).await?);
        }
        let mut held =
            if list.groups.is_empty() { Vec::new() } else { self.members.ask(Ask::Status).await? };
        held.sort_by(|a, b| (&a.group, a.seen, a.in_flight).cmp(&(&b.group, b.seen, b.in_flight)));
        Ok((counted, held))
    }

    async fn known(&self, group: &Group) -> Result<Record> {
        let list = self.registrar.read().await?;
        list.groups.get(group.as_str()).cloned().ok_or_else(|| unknown(group))
    }

    async fn seek_to(&self, group: &Group, start: Start) -> Result<()> {
        let record = self.known(group).await?;
        if start != Start::New {
            let text = "`rabbitmq` keeps no history: a group can only be moved to new messages";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        self.client.declarer.purge(self.client.names.group(group)).await?;
        self.members.ask(Ask::GiveUp(group.to_string())).await?;
        for length in delay_queues::lengths(record.rooms) {
            self.client.declarer.purge(self.client.names.retry(group, length)).await?;
        }
        // Removes messages that returned to the queue after it was first purged.
        self.client.declarer.purge(self.client.names.group(group)).await
    }

    async fn delete(&self, group: &Group) -> Result<()> {
        let mut record = None;
        self.registrar
            .change(|list| {
                record = list.groups.remove(group.as_str());
                if record.is_none() {
                    return Err(unknown(group));
                }
                list.buried.push(group.to_string());
                Ok(true)
            })
            .await?;
        let record = record.expect("checked");
        self.members.ask(Ask::End(group.to_string())).await?;
        self.client.declarer.delete(self.client.names.group(group)).await?;
        self.client.declarer.delete(self.client.names.journal(group)).await?;
        self.delay_queues.delete(group, record.rooms).await
    }

    async fn planned(&self, topology: &Topology) -> Result<Vec<Change>> {
        let wanted = topology.subscriptions()?;
        let list = self.registrar.read().await?;
        let mut changes: Vec<Change> = self.bindings.plan(&list).await?.into_iter().collect();
        for spec in &wanted {
            changes.extend(compare(&list, spec));
            let Mode::Group(group) = &spec.mode else { continue };
            let queue = self.client.names.group(group);
            if list.groups.contains_key(group.as_str())
                && self.client.declarer.counts(queue.clone()).await?.is_none()
            {
                let of = Difference::new("group", None, group.to_string());
                changes.push(Change::new(format!("queue {queue}"), Action::Create, vec![of]));
            }
        }
        Ok(changes)
    }

    async fn applied(&self, topology: &Topology) -> Result<Vec<Change>> {
        let changes = self.planned(topology).await?;
        self.bindings.look(Provision::Update).await?;
        for spec in topology.subscriptions()? {
            let list = self.registrar.read().await?;
            if compare(&list, &spec).is_none_or(|change| change.action != Action::Blocked) {
                self.groups.provide(&spec, Provision::Update).await?;
            }
        }
        Ok(changes)
    }

    fn operation<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        step: impl Future<Output = Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            let checked = async {
                self.client.check()?;
                step.await
            };
            checked.await.map_err(|error| error.during(operation))
        })
    }
}

fn statuses(list: &Registry, look: &(HashMap<String, Counted>, Vec<Holding>)) -> Result<Vec<GroupStatus>> {
    let (counts, holdings) = look;
    let of = |(name, record): (&String, &Record)| {
        let mut status = GroupStatus::new(Group::new(name)?, record.patterns());
        let counted = counts.get(name).cloned().unwrap_or_default();
        status.waiting = counted.ready + counted.rooms;
        status.retrying = counted.rooms;
        status.dead = counted.dead;
        for held in holdings.iter().filter(|held| held.group == *name) {
            status.in_flight += held.in_flight;
            status.waiting += held.held + held.retrying;
            status.retrying += held.retrying;
            status.members += u64::from(held.live);
            let oldest = held.oldest.and_then(|at| Timestamp::from_millisecond(at).ok());
            status.oldest_unsettled = [status.oldest_unsettled, oldest].into_iter().flatten().min();
        }
        Ok(status)
    };
    list.groups.iter().map(of).collect()
}

impl Admin for Administration {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.operation("list dead letters", self.dead_letters.letters(filter, Fate::Stay))
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.operation("replay dead letters", async {
            Ok(self.dead_letters.letters(filter, Fate::Replay).await?.len() as u64)
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.operation("drop dead letters", async {
            Ok(self.dead_letters.letters(filter, Fate::Drop).await?.len() as u64)
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.operation("list groups", self.status())
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.operation("plan topology", async move { self.planned(&topology).await })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.operation("apply topology", async move { self.applied(&topology).await })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.operation("seek", async move { self.seek_to(&group, start).await })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.operation("delete group", async move { self.delete(&group).await })
    }

    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.operation("diagnose", diagnose(&self.client))
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        self.operation("ping", async {
            let start = Instant::now();
            if let Some(blocked) = self.client.publish.blocked() {
                return Err(blocked);
            }
            self.client.declarer.consumers(self.client.names.roster()).await?;
            Ok(start.elapsed())
        })
    }
}
