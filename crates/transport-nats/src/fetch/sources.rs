//! The consumers that a member fetches from, one per topic of the group, and their re-creation after a removal.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::subjects::Subjects;
use crate::group::{Groups, Record, consumer};
use crate::pull::{Pulls, part};
use crate::source::Source;
use crate::{attempts, dead_letters, kv, names};
use event_transport::error::Result;
use event_transport::subject::Group;
use event_transport::subscription::Feed;

/// How long free slots are collected for one pull while the consumer has deliveries to take.
const GATHER: Duration = Duration::from_millis(1);

/// The group as the member knows it, and the pulls on its consumers.
pub(super) struct Sources {
    pub(super) groups: Arc<Groups>,
    group: Group,
    pub(super) record: Record,
    pub(super) pulls: Pulls,
    pub(super) subjects: Subjects,
    /// Time until which free slots are collected.
    gathering: Option<Instant>,
}

impl Sources {
    pub(super) fn new(groups: &Arc<Groups>, group: Group, record: Record, inbox: String) -> Self {
        let pulls = Pulls::new(groups.client.outbound.clone(), inbox);
        let (groups, subjects) = (groups.clone(), Subjects::default());
        Self { groups, group, record, pulls, subjects, gathering: None }
    }

    /// Replaces the record. Returns whether the group was moved: the pulls on its old consumers are dropped then.
    pub(super) fn replace(&mut self, record: Record) -> bool {
        let moved = record.epoch != self.record.epoch;
        self.record = record;
        self.subjects.forget();
        if moved {
            self.pulls.clear();
        }
        moved
    }

    /// Sends pulls for the free slots. Returns the latest time at which to check again, and whether a pull was not
    /// answered.
    pub(super) fn pull(&mut self, feed: &Feed, free: usize) -> (Option<Instant>, bool) {
        // Many small pulls cost more than one. When the consumer has nothing to take, the pull is sent at once.
        let busy = feed.untaken() > 0;
        let room = if busy { feed.max_in_flight() } else { free };
        if free > 0 && free < part(room) && self.pulls.outstanding() == 0 {
            let until = *self.gathering.get_or_insert_with(|| Instant::now() + GATHER);
            if until > Instant::now() {
                return (Some(until), false);
            }
        }
        self.gathering = None;
        self.pulls.top_up_by(free, room)
    }

    /// Adds each consumer of the group as a source of pulls, and creates missing consumers.
    pub(super) async fn scan(&mut self) -> Result<()> {
        let (client, group) = (&self.groups.client, &self.group);
        let provision = client.config.provision;
        let name = names::consumer(group, self.record.epoch);
        for topic in self.groups.topics_of(&self.record).await? {
            let stream = client.names.stream(&topic);
            if self.pulls.sources().any(|source| source.stream == stream && source.consumer == name) {
                continue;
            }
            let info = consumer::ensure(client, group, &self.record, &topic, None, provision).await?;
            if let Some(info) = info {
                self.pulls.add(Source::of(stream, name.clone(), false, &info));
            }
        }
        let work = client.names.work();
        if self.record.replays && !self.pulls.sources().any(|source| source.stream == work) {
            dead_letters::ensure_replays(client, group, &self.record).await?;
            self.pulls.add(Source::new(work, names::consumer(group, 0), true));
        }
        Ok(())
    }

    /// Checks that all consumers still exist, and creates missing ones again as far as `provision` allows.
    pub(super) async fn verify(&mut self) -> Result<()> {
        let (groups, group) = (self.groups.clone(), self.group.clone());
        let client = &groups.client;
        let name = names::consumer(&group, self.record.epoch);
        let topics = groups.topics_of(&self.record).await?;
        let mut created = Vec::with_capacity(topics.len());
        for topic in &topics {
            created.push(groups.stand(topic).await?);
        }
        let record = groups.identify(&group, self.record.clone()).await?;
        if record.made_differs(&self.record) {
            self.record = record;
            self.subjects.forget();
        }
        for (topic, created) in topics.iter().zip(created) {
            let stream = client.names.stream(topic);
            let same = |source: &&Arc<Source>| source.stream == stream && source.consumer == name;
            let known = self.pulls.sources().find(same).cloned();
            let stands = consumer::info(client, &stream, &name).await?;
            let removed = stands.is_none();
            let info = match stands {
                Some(info) if known.as_ref().is_some_and(|known| known.is_still(&info)) => continue,
                Some(info) => info,
                None => {
                    let from = known.as_ref().and_then(|known| known.successor(created));
                    if let (Some(known), None) = (&known, &from) {
                        // The attempts belong to another stream.
                        let attempts = format!("{}>", attempts::prefix(&client.names, known));
                        kv::purge(client, &client.names.state(), &attempts).await?;
                    }
                    let provision = client.config.provision;
                    let made = consumer::ensure(client, &group, &self.record, topic, from, provision);
                    let Some(info) = made.await? else { continue };
                    info
                }
            };
            if let Some(known) = known {
                tracing::error!(
                    %group, %stream, consumer = %name, made_again = removed,
                    "the group's consumer was removed from the server; messages not known to be settled are delivered again"
                );
                self.pulls.remove(&known);
            }
            self.pulls.add(Source::of(stream, name.clone(), false, &info));
        }
        if self.record.replays {
            let (work, name) = (client.names.work(), names::consumer(&group, 0));
            if consumer::info(client, &work, &name).await?.is_none() {
                dead_letters::ensure_replays(client, &group, &self.record).await?;
            }
        }
        Ok(())
    }
}
