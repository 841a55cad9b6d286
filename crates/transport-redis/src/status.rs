//! Reports the progress of groups: pending lists, lags, and the number of unread entries that they want.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use redis::Pipeline;
use smol_str::SmolStr;

use super::client::Client;
use super::codec::{EntryId, number, parts, text};
use super::error::{odd, reply};
use super::filters::Filters;
use super::group::{Definition, Definitions};
use super::scripts;
use super::unread::{self, Wanted};
use event_transport::GroupStatus;
use event_transport::error::Result;
use event_transport::subject::Group;

/// Number of groups and of topics that are looked at together.
const TOGETHER: usize = 4;

pub(super) struct Status {
    client: Arc<Client>,
    definitions: Definitions,
}

/// The status of one group as the server reports it, before entries are read for it.
struct Progress {
    status: GroupStatus,
    oldest: Option<EntryId>,
    /// Topics with unread entries that the group wants only in part.
    partial: Vec<(SmolStr, Wanted)>,
}

impl Status {
    pub(super) fn new(client: Arc<Client>, definitions: Definitions) -> Self {
        Self { client, definitions }
    }

    /// Returns the status of every group.
    pub(super) async fn all(&self) -> Result<Vec<GroupStatus>> {
        let definitions = self.definitions.all().await?;
        let is_wild = definitions.iter().any(|(_, definition)| definition.is_wild());
        let topics = if is_wild { self.client.topics().await? } else { Vec::new() };
        let mut groups: Vec<Progress> = stream::iter(definitions.into_iter().enumerate())
            .map(|(index, (group, definition))| self.progress(index, group, definition, &topics))
            .buffered(TOGETHER)
            .try_collect()
            .await?;
        let mut topics: BTreeMap<SmolStr, Vec<Wanted>> = BTreeMap::new();
        for (topic, wanted) in groups.iter_mut().flat_map(|group| group.partial.drain(..)) {
            topics.entry(topic).or_default().push(wanted);
        }
        let counts: Vec<_> = stream::iter(topics)
            .map(|(topic, wanted)| async move { unread::count(&self.client, &topic, wanted).await })
            .buffered(TOGETHER)
            .try_collect()
            .await?;
        for unread in counts.into_iter().flatten() {
            let group = &mut groups[unread.group];
            group.status.waiting += unread.count;
            group.oldest = older(group.oldest, unread.first);
        }
        let finish = |Progress { mut status, oldest, .. }| {
            status.oldest_unsettled = oldest.and_then(EntryId::time);
            status
        };
        Ok(groups.into_iter().map(finish).collect())
    }

    async fn progress(
        &self,
        index: usize,
        group: Group,
        definition: Definition,
        topics: &[SmolStr],
    ) -> Result<Progress> {
        let mut status = GroupStatus::new(group.clone(), definition.patterns());
        let keys = &self.client.keys;
        let mut pipeline = Pipeline::new();
        for topic in &definition.topics {
            let replay = keys.source(topic, group.as_str(), true);
            let log = keys.source(topic, group.as_str(), false);
            let mut command = scripts::STATUS.on(&[
                &log.stream,
                &keys.settings(topic, group.as_str()),
                &log.due,
                &keys.dead(topic, group.as_str()),
                &replay.stream,
                &replay.due,
            ]);
            command.arg(group.as_str());
            pipeline.add_command(command);
        }
        // Members whose membership has not expired, by the server's clock.
        pipeline.cmd("TIME");
        pipeline.cmd("ZRANGE").arg(keys.members(group.as_str())).arg(0).arg(-1).arg("WITHSCORES");
        let mut replies = self.client.connection.run(&pipeline).await?;
        let members = parts(reply(replies.pop().unwrap_or_default())?);
        let now = parts(reply(replies.pop().unwrap_or_default())?).first().map_or(0, number) * 1000;
        status.members = members
            .chunks(2)
            .filter(|pair| pair.get(1).is_some_and(|end| text(end).parse().unwrap_or(0.0) > now as f64))
            .count() as u64;
        let mut oldest: Option<EntryId> = None;
        let mut partial = Vec::new();
        for (topic, value) in definition.topics.iter().zip(replies) {
            let place = parts(reply(value)?);
            if place.is_empty() {
                continue; // another member is about to create it
            }
            let [_, filters, parked, hand, retrying, first, delivered, lag, dead, replays, last, unread] =
                place.as_slice()
            else {
                return Err(odd("a group's status"));
            };
            status.in_flight += number(hand) as u64;
            status.waiting += (number(parked) + number(replays)) as u64;
            status.retrying += number(retrying) as u64;
            status.dead += number(dead) as u64;
            oldest = older(oldest, text(first).parse().ok());
            let (delivered, last): (EntryId, EntryId) = (text(delivered).parse()?, text(last).parse()?);
            let lag = number(lag);
            if delivered >= last || lag == 0 {
                continue;
            }
            let filters = Filters::parse(text(filters));
            match u64::try_from(lag) {
                Ok(lag) if filters.take_all_after(delivered) => {
                    status.waiting += lag;
                    oldest = older(oldest, text(unread).parse().ok());
                }
                _ => partial.push((topic.clone(), Wanted { group: index, filters, delivered, lag })),
            }
        }
        let mut progress = Progress { status, oldest, partial };
        self.add_newer_topics(index, &definition, topics, &mut progress).await?;
        Ok(progress)
    }

    /// Counts the messages of topics that are newer than the group and that no member has seen yet: its next member
    /// creates the group on them and reads them from their beginning.
    async fn add_newer_topics(
        &self,
        index: usize,
        definition: &Definition,
        topics: &[SmolStr],
        progress: &mut Progress,
    ) -> Result<()> {
        if !definition.is_wild() {
            return Ok(());
        }
        let newer = |topic: &&SmolStr| !definition.topics.contains(*topic);
        let topics: Vec<&SmolStr> = topics.iter().filter(newer).collect();
        if topics.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        for topic in &topics {
            let log = self.client.keys.log(topic);
            pipeline.cmd("XLEN").arg(&log).cmd("XRANGE").arg(log).arg("-").arg("+").arg("COUNT").arg(1);
        }
        let replies = self.client.connection.run(&pipeline).await?;
        // As `ensure.lua` writes the filters of a new group on a topic: they hold from the first entry on.
        let filters = Filters::parse(&format!("0-0 {}", definition.filters.join(" ")));
        let delivered = EntryId::default();
        let takes_all = filters.take_all_after(delivered);
        for (topic, replies) in topics.into_iter().zip(replies.chunks(2)) {
            let [length, first] = replies else { return Err(odd("the length of a topic")) };
            let lag = number(&reply(length.clone())?);
            if lag > 0 && takes_all {
                let first = parts(reply(first.clone())?).into_iter().next().map(parts).unwrap_or_default();
                progress.status.waiting += lag as u64;
                progress.oldest = older(progress.oldest, first.first().and_then(|id| text(id).parse().ok()));
            } else if lag > 0 {
                let filters = filters.clone();
                progress.partial.push((topic.clone(), Wanted { group: index, filters, delivered, lag }));
            }
        }
        Ok(())
    }
}

fn older(a: Option<EntryId>, b: Option<EntryId>) -> Option<EntryId> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
