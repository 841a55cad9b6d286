//! The consumers that a member fetches from, one per topic of the group, and their re-creation after a removal.

use super::*;
use crate::transport::nats::names;

impl Fetcher {
    /// Adds each consumer of the group as a source of pulls, and creates missing consumers.
    pub(super) async fn scan(&mut self) -> Result<()> {
        let connection = self.member.connection.clone();
        let group = &self.member.group;
        let provision = connection.config.provision;
        let consumer = names::consumer(group, self.record.epoch);
        for topic in connection.topics_of(&self.record).await? {
            let stream = connection.names.stream(&topic);
            if self.pulls.sources().any(|source| source.stream == stream && source.consumer == consumer) {
                continue;
            }
            let info = connection.ensure_consumer(group, &self.record, &topic, None, provision).await?;
            if let Some(info) = info {
                self.pulls.add(Source::of(stream, consumer.clone(), false, &info));
            }
        }
        let work = connection.names.work();
        if self.record.replays && !self.pulls.sources().any(|source| source.stream == work) {
            dead_letters::ensure_replays(&connection, group, &self.record).await?;
            self.pulls.add(Source::new(work, names::consumer(group, 0), true));
        }
        Ok(())
    }

    /// Checks that all consumers still exist, and creates missing ones again as far as `provision` allows.
    pub(super) async fn verify(&mut self) -> Result<()> {
        let connection = self.member.connection.clone();
        let group = self.member.group.clone();
        let consumer = names::consumer(&group, self.record.epoch);
        let topics = connection.topics_of(&self.record).await?;
        let mut created = Vec::with_capacity(topics.len());
        for topic in &topics {
            created.push(connection.stand(topic).await?);
        }
        let record = connection.identify(&group, self.record.clone()).await?;
        if record.made_differs(&self.record) {
            self.record = record;
            self.subjects.forget();
        }
        for (topic, created) in topics.iter().zip(created) {
            let stream = connection.names.stream(topic);
            let same = |source: &&Arc<Source>| source.stream == stream && source.consumer == consumer;
            let known = self.pulls.sources().find(same).cloned();
            let stands = connection.consumer_info(&stream, &consumer).await?;
            let removed = stands.is_none();
            let info = match stands {
                Some(info) if known.as_ref().is_some_and(|known| known.is_still(&info)) => continue,
                Some(info) => info,
                None => {
                    let from = known.as_ref().and_then(|known| known.successor(created));
                    if let (Some(known), None) = (&known, &from) {
                        // The attempts belong to another stream.
                        let attempts = format!("{}>", connection.attempts_of(known));
                        connection.purge(&connection.names.state(), &attempts).await?;
                    }
                    let provision = connection.config.provision;
                    let made = connection.ensure_consumer(&group, &self.record, topic, from, provision);
                    let Some(info) = made.await? else { continue };
                    info
                }
            };
            if let Some(known) = known {
                tracing::error!(
                    %group, %stream, %consumer, made_again = removed,
                    "the group's consumer was removed from the server; messages not known to be settled are delivered again"
                );
                self.pulls.remove(&known);
            }
            self.pulls.add(Source::of(stream, consumer.clone(), false, &info));
        }
        if self.record.replays {
            let (work, name) = (connection.names.work(), names::consumer(&group, 0));
            if connection.consumer_info(&work, &name).await?.is_none() {
                dead_letters::ensure_replays(&connection, &group, &self.record).await?;
            }
        }
        Ok(())
    }
}
