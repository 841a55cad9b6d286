//! The administration of a Redis bus: dead letters, groups and their lag, topology.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{Pipeline, Value};
use smol_str::SmolStr;

use super::client::Client;
use super::dead_letters::{DeadLetters, unknown};
use super::diagnose::diagnose;
use super::error::reply;
use super::group::{Definitions, compare, start_word};
use super::scripts;
use super::status::Status;
use event_transport::error::Result;
use event_transport::subject::{Group, Subject};
use event_transport::{
    Action, Admin, Change, DeadLetter, DeadLetterFilter, Difference, Finding, GroupStatus, Mode, Start,
    Topology,
};

/// Administers the bus.
pub(super) struct Administrator {
    client: Arc<Client>,
    definitions: Definitions,
    dead_letters: DeadLetters,
    status: Status,
}

impl Administrator {
    pub(super) fn new(client: Arc<Client>, definitions: Definitions) -> Self {
        Self {
            dead_letters: DeadLetters::new(client.clone(), definitions.clone()),
            status: Status::new(client.clone(), definitions.clone()),
            client,
            definitions,
        }
    }

    /// Runs an operation on an open bus; its errors name the operation.
    fn step<'a, T: Send + 'a>(
        &'a self,
        operation: &'static str,
        step: impl Future<Output = Result<T>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            self.client.check_open(operation)?;
            step.await.map_err(|error| error.during(operation))
        })
    }

    async fn plan_changes(&self, topology: &Topology) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let wanted = topology.subscriptions()?;
        for topic in self.missing_topics(topology).await? {
            let object = format!("stream {}", self.client.keys.log(&topic));
            let difference = Difference::new("topic", None, topic.to_string());
            changes.push(Change::new(object, Action::Create, vec![difference]));
        }
        for spec in &wanted {
            let Mode::Group(group) = &spec.mode else { continue };
            let is = self.definitions.get(group).await?;
            changes.extend(compare(spec, is.as_ref().map(|(_, definition)| definition)));
            if let Some((_, definition)) = is {
                changes.extend(self.definitions.missing_places(group, &definition).await?);
            }
        }
        Ok(changes)
    }

    /// Topics that the topology lists besides those of its groups and that have no stream.
    async fn missing_topics(&self, topology: &Topology) -> Result<Vec<SmolStr>> {
        let mut missing = Vec::new();
        for topic in &topology.topics {
            Subject::new(topic)?;
            let mut ask = redis::cmd("EXISTS");
            ask.arg(self.client.keys.log(topic));
            if self.client.connection.ask(ask).await? == Value::Int(0) {
                missing.push(topic.clone());
            }
        }
        Ok(missing)
    }
}

impl Admin for Administrator {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.step("list dead letters", async move {
            Ok(self.dead_letters.list(&filter).await?.into_iter().map(|letter| letter.letter).collect())
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.step("replay dead letters", async move {
            let letters = self.dead_letters.list(&filter).await?;
            self.dead_letters.replay(letters).await
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.step("drop dead letters", async move {
            let letters = self.dead_letters.list(&filter).await?;
            self.dead_letters.drop(letters).await
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.step("list groups", self.status.all())
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.step("plan topology", async move { self.plan_changes(&topology).await })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.step("apply topology", async move {
            let changes = self.plan_changes(&topology).await?;
            for topic in self.missing_topics(&topology).await? {
                create_topic(&self.client, &topic).await?;
            }
            for spec in topology.subscriptions()? {
                let Mode::Group(group) = &spec.mode else { continue };
                self.definitions.define(group, &spec, None, true).await?;
            }
            Ok(changes)
        })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.step("seek", async move {
            let Some((_, definition)) = self.definitions.get(&group).await? else {
                return Err(unknown(&group));
            };
            move_group(&self.client, &group, &definition.topics, &start_word(start)).await?;
            self.client.signal(&self.client.keys.wake(group.as_str()), "changed").await
        })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.step("delete group", async move {
            let Some((_, definition)) = self.definitions.get(&group).await? else {
                return Err(unknown(&group));
            };
            let client = &self.client;
            let keys = &client.keys;
            // Members must see that the definition is deleted before they see that anything else is.
            let mut pipeline = Pipeline::new();
            pipeline.cmd("MULTI");
            pipeline.cmd("SET").arg(keys.tombstone(group.as_str())).arg("deleted").arg("EX").arg(86_400);
            pipeline.cmd("HDEL").arg(keys.groups()).arg(group.as_str());
            pipeline.cmd("DEL").arg(keys.members(group.as_str()));
            pipeline.cmd("EXEC");
            client.connection.ask_all(&pipeline).await?;
            move_group(client, &group, &definition.topics, "delete").await?;
            client.signal(&keys.wake(group.as_str()), "changed").await
        })
    }

    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.step("diagnose", diagnose(&self.client))
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        self.step("ping", self.client.ping())
    }
}

async fn move_group(client: &Client, group: &Group, topics: &BTreeSet<SmolStr>, start: &str) -> Result<()> {
    let mut pipeline = Pipeline::new();
    for topic in topics {
        let keys = &client.keys;
        let log = keys.source(topic, group.as_str(), false);
        let replay = keys.source(topic, group.as_str(), true);
        let mut command = scripts::MOVE.on(&[
            &log.stream,
            &keys.settings(topic, group.as_str()),
            &log.due,
            &log.notes,
            &keys.owner(topic, group.as_str()),
            &replay.stream,
            &replay.due,
            &replay.notes,
            &keys.floors(topic),
        ]);
        command.arg(group.as_str()).arg(start);
        pipeline.add_command(command);
    }
    client.connection.ask_all(&pipeline).await.map(drop)
}

/// Creates and registers an empty stream.
async fn create_topic(client: &Client, topic: &SmolStr) -> Result<()> {
    client.register(std::slice::from_ref(topic)).await?;
    let mut pipeline = Pipeline::new();
    let log = client.keys.log(topic);
    pipeline.cmd("XGROUP").arg("CREATE").arg(&log).arg("~").arg("$").arg("MKSTREAM");
    pipeline.cmd("XGROUP").arg("DESTROY").arg(&log).arg("~");
    for value in client.connection.run(&pipeline).await? {
        // Another client may have just created it.
        if !super::error::is_code(&value, "BUSYGROUP") {
            reply(value)?;
        }
    }
    Ok(())
}
