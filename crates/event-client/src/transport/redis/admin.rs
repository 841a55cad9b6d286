//! The administration of a Redis bus: dead letters, groups and their lag, topology.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use redis::{Pipeline, Value};
use smol_str::SmolStr;

use super::RedisTransport;
use super::client::Client;
use super::dead_letters::unknown;
use super::error::reply;
use super::group::{compare, start_word};
use super::scripts;
use crate::error::Result;
use crate::subject::{Group, Subject};
use crate::transport::{
    Action, Admin, Change, DeadLetter, DeadLetterFilter, Difference, Finding, GroupStatus, Mode, Start,
    Topology,
};

impl RedisTransport {
    fn admin_step<'a, T: Send + 'a, F>(
        &'a self,
        operation: &'static str,
        step: impl FnOnce(Arc<Client>) -> F + Send + 'a,
    ) -> BoxFuture<'a, Result<T>>
    where
        F: Future<Output = Result<T>> + Send + 'a,
    {
        Box::pin(async move {
            let client = self.live(operation)?.clone();
            step(client).await.map_err(|error| error.during(operation))
        })
    }
}

impl Admin for RedisTransport {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.admin_step("list dead letters", async move |client| {
            Ok(client.letters(&filter).await?.into_iter().map(|letter| letter.letter).collect())
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("replay dead letters", async move |client| {
            let letters = client.letters(&filter).await?;
            client.replay(letters).await
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("drop dead letters", async move |client| {
            let letters = client.letters(&filter).await?;
            client.drop_letters(letters).await
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.admin_step("list groups", async move |client| {
            let mut all = Vec::new();
            for (group, definition) in client.definitions().await? {
                all.push(client.status(&group, &definition).await?);
            }
            Ok(all)
        })
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.admin_step("plan topology", async move |client| plan(&client, &topology).await)
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.admin_step("apply topology", async move |client| {
            let changes = plan(&client, &topology).await?;
            for topic in missing_topics(&client, &topology).await? {
                client.create_topic(&topic).await?;
            }
            for spec in topology.subscriptions()? {
                let Mode::Group(group) = &spec.mode else { continue };
                client.define(group, &spec, None, true).await?;
            }
            Ok(changes)
        })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.admin_step("seek", async move |client| {
            let Some((_, definition)) = client.definition(&group).await? else { return Err(unknown(&group)) };
            client.move_group(&group, &definition.topics, &start_word(start)).await?;
            client.signal(&client.keys.wake(group.as_str()), "changed").await
        })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.admin_step("delete group", async move |client| {
            let Some((_, definition)) = client.definition(&group).await? else { return Err(unknown(&group)) };
            let keys = &client.keys;
            // Members must see that the definition is deleted before they see that anything else is.
            let mut pipeline = Pipeline::new();
            pipeline.cmd("MULTI");
            pipeline.cmd("SET").arg(keys.tombstone(group.as_str())).arg("deleted").arg("EX").arg(86_400);
            pipeline.cmd("HDEL").arg(keys.groups()).arg(group.as_str());
            pipeline.cmd("DEL").arg(keys.members(group.as_str()));
            pipeline.cmd("EXEC");
            client.connection.ask_all(&pipeline).await?;
            client.move_group(&group, &definition.topics, "delete").await?;
            client.signal(&keys.wake(group.as_str()), "changed").await
        })
    }

    fn diagnose(&self) -> BoxFuture<'_, Result<Vec<Finding>>> {
        self.admin_step("diagnose", async |client| client.diagnose().await)
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        self.admin_step("ping", async move |client| client.ping().await)
    }
}

impl Client {
    async fn move_group(&self, group: &Group, topics: &BTreeSet<SmolStr>, start: &str) -> Result<()> {
        let mut pipeline = Pipeline::new();
        for topic in topics {
            let keys = &self.keys;
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
        self.connection.ask_all(&pipeline).await.map(drop)
    }

    /// Creates and registers an empty stream.
    async fn create_topic(&self, topic: &SmolStr) -> Result<()> {
        self.register(std::slice::from_ref(topic)).await?;
        let mut pipeline = Pipeline::new();
        let log = self.keys.log(topic);
        pipeline.cmd("XGROUP").arg("CREATE").arg(&log).arg("~").arg("$").arg("MKSTREAM");
        pipeline.cmd("XGROUP").arg("DESTROY").arg(&log).arg("~");
        for value in self.connection.run(&pipeline).await? {
            // Another client may have just created it.
            if !super::error::is_code(&value, "BUSYGROUP") {
                reply(value)?;
            }
        }
        Ok(())
    }
}

async fn plan(client: &Client, topology: &Topology) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let wanted = topology.subscriptions()?;
    for topic in missing_topics(client, topology).await? {
        let object = format!("stream {}", client.keys.log(&topic));
        let difference = Difference::new("topic", None, topic.to_string());
        changes.push(Change::new(object, Action::Create, vec![difference]));
    }
    for spec in &wanted {
        let Mode::Group(group) = &spec.mode else { continue };
        let is = client.definition(group).await?;
        changes.extend(compare(spec, is.as_ref().map(|(_, definition)| definition)));
        if let Some((_, definition)) = is {
            changes.extend(client.missing_places(group, &definition).await?);
        }
    }
    Ok(changes)
}

/// Topics that the topology lists besides those of its groups and that have no stream.
async fn missing_topics(client: &Client, topology: &Topology) -> Result<Vec<SmolStr>> {
    let mut missing = Vec::new();
    for topic in &topology.topics {
        Subject::new(topic)?;
        let mut ask = redis::cmd("EXISTS");
        ask.arg(client.keys.log(topic));
        if client.connection.ask(ask).await? == Value::Int(0) {
            missing.push(topic.clone());
        }
    }
    Ok(missing)
}
