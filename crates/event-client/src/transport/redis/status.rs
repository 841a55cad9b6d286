//! Reports the progress of groups: pending lists, lags, and the number of unread entries that they want.

use redis::Pipeline;

use super::client::Client;
use super::codec::{EntryId, number, parts, text};
use super::error::{odd, reply};
use super::filters::Filters;
use super::group::{Definition, read_definition};
use super::scripts;
use crate::error::Result;
use crate::subject::{Group, Subject};
use crate::transport::GroupStatus;

/// Number of entries whose subjects are read in one step.
const PAGE: usize = 1000;
/// Beyond this number of unread entries of a topic, the rest is estimated.
const EXACT: usize = 50_000;

impl Client {
    /// Returns every group with its definition.
    pub(super) async fn definitions(&self) -> Result<Vec<(Group, Definition)>> {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(self.keys.groups());
        let mut all = Vec::new();
        for pair in parts(self.connection.ask(ask).await?).chunks(2) {
            let (Ok(group), Some(value)) = (Group::new(text(&pair[0])), pair.get(1)) else { continue };
            if let Some((_, definition)) = read_definition(value)? {
                all.push((group, definition));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    pub(super) async fn status(&self, group: &Group, definition: &Definition) -> Result<GroupStatus> {
        let mut status = GroupStatus::new(group.clone(), definition.patterns());
        let keys = &self.keys;
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
        let mut replies = self.connection.run(&pipeline).await?;
        let members = parts(reply(replies.pop().unwrap_or_default())?);
        let now = parts(reply(replies.pop().unwrap_or_default())?).first().map_or(0, number) * 1000;
        status.members = members
            .chunks(2)
            .filter(|pair| pair.get(1).is_some_and(|end| text(end).parse().unwrap_or(0.0) > now as f64))
            .count() as u64;
        let mut oldest: Option<EntryId> = None;
        for (topic, value) in definition.topics.iter().zip(replies) {
            let place = parts(reply(value)?);
            if place.is_empty() {
                continue; // another member is about to create it
            }
            let [_, filters, parked, hand, retrying, first, delivered, lag, dead, replays, last] =
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
            if delivered < last && number(lag) != 0 {
                let filters = Filters::parse(text(filters));
                let (unread, first) = self.unread(topic, &filters, delivered, number(lag)).await?;
                status.waiting += unread;
                oldest = older(oldest, first);
            }
        }
        status.oldest_unsettled = oldest.and_then(EntryId::time);
        Ok(status)
    }

    /// Returns the number of unread entries of a topic that the group wants, and the first of them.
    async fn unread(
        &self,
        topic: &str,
        filters: &Filters,
        delivered: EntryId,
        lag: i64,
    ) -> Result<(u64, Option<EntryId>)> {
        let (mut after, mut seen, mut wanted) = (delivered, 0, 0);
        let mut first = None;
        loop {
            let mut command = scripts::SCAN.on(&[&self.keys.log(topic)]);
            command.arg(after).arg(PAGE);
            let page = parts(self.connection.ask(command).await?);
            let count = page.len() / 2;
            for pair in page.chunks(2) {
                let [id, subject] = pair else { continue };
                after = text(id).parse()?;
                // A foreign entry without a subject has its topic's name.
                let subject = match text(subject) {
                    "" => Subject::new(topic),
                    subject => Subject::new(subject),
                };
                if subject.is_ok_and(|subject| filters.matches(&subject, after)) {
                    wanted += 1;
                    first = first.or(Some(after));
                }
            }
            seen += count;
            if count < PAGE {
                return Ok((wanted, first));
            }
            if seen >= EXACT {
                let rest = u64::try_from(lag).unwrap_or(0).saturating_sub(seen as u64);
                return Ok((wanted + rest * wanted / seen as u64, first));
            }
        }
    }
}

fn older(a: Option<EntryId>, b: Option<EntryId>) -> Option<EntryId> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
