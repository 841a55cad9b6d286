//! Dead letters: one stream for each group and topic; lists, replays and drops letters by their ids.

use std::sync::Arc;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use smol_str::{SmolStr, format_smolstr};

use super::client::Client;
use super::codec::{self, Entry, number, parts, text};
use super::error::reply;
use super::group::Definitions;
use super::scripts;
use event_transport::delivery::Reason;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::headers;
use event_transport::subject::Group;
use event_transport::{DeadLetter, DeadLetterFilter};

/// Number of letters in one page.
const PAGE: usize = 200;

/// A letter with its location.
pub(super) struct Letter {
    topic: SmolStr,
    group: Group,
    /// Its id in the stream.
    entry: codec::EntryId,
    pub(super) letter: DeadLetter,
}

/// The dead letters of all groups.
pub(super) struct DeadLetters {
    client: Arc<Client>,
    definitions: Definitions,
}

impl DeadLetters {
    pub(super) fn new(client: Arc<Client>, definitions: Definitions) -> Self {
        Self { client, definitions }
    }

    /// Returns the letters that match the filter, oldest first.
    pub(super) async fn list(&self, filter: &DeadLetterFilter) -> Result<Vec<Letter>> {
        let topics = match filter.subject.as_ref().and_then(|pattern| pattern.topic()) {
            Some(topic) => vec![SmolStr::new(topic)],
            None => self.client.topics().await?,
        };
        let mut letters = Vec::new();
        for topic in topics {
            let mut ask = redis::cmd("SMEMBERS");
            ask.arg(self.client.keys.dead_groups(&topic));
            for group in parts(self.client.connection.ask(ask).await?) {
                let Ok(group) = Group::new(text(&group)) else { continue };
                if filter.group.as_ref().is_none_or(|wanted| *wanted == group) {
                    self.letters_of(&topic, &group, filter, &mut letters).await?;
                }
            }
        }
        letters.sort_by_key(|letter| (letter.letter.dead_at, letter.entry));
        if filter.limit > 0 {
            letters.truncate(filter.limit);
        }
        Ok(letters)
    }

    async fn letters_of(
        &self,
        topic: &SmolStr,
        group: &Group,
        filter: &DeadLetterFilter,
        letters: &mut Vec<Letter>,
    ) -> Result<()> {
        let key = self.client.keys.dead(topic, group.as_str());
        let prefix = format!("{topic}/{group}/");
        if !filter.ids.is_empty() {
            for id in filter.ids.iter().filter_map(|id| id.strip_prefix(&prefix)) {
                let Ok(id) = id.parse::<codec::EntryId>() else { continue };
                let mut ask = redis::cmd("XRANGE");
                ask.arg(&key).arg(id).arg(id);
                choose(self.client.connection.ask(ask).await?, topic, group, filter, letters);
            }
            return Ok(());
        }
        let mut from = "-".to_owned();
        let mut found = 0;
        loop {
            let mut ask = redis::cmd("XRANGE");
            ask.arg(&key).arg(&from).arg("+").arg("COUNT").arg(PAGE);
            let page = self.client.connection.ask(ask).await?;
            let ids: Vec<_> = match &page {
                Value::Array(entries) => entries.iter().filter_map(id).collect(),
                _ => Vec::new(),
            };
            found += choose(page, topic, group, filter, letters);
            // Of each stream, no more letters than the limit are needed, because each is in order.
            let enough = filter.limit > 0 && found >= filter.limit;
            match ids.last() {
                Some(last) if ids.len() == PAGE && !enough => from = format!("({last}"),
                _ => return Ok(()),
            }
        }
    }

    /// Sends letters to the group that failed on them; returns the number of letters.
    pub(super) async fn replay(&self, letters: Vec<Letter>) -> Result<u64> {
        // All or nothing: a letter without a group would be lost.
        for letter in &letters {
            if self.definitions.get(&letter.group).await?.is_none() {
                return Err(unknown(&letter.group).with("dead_letter", &letter.letter.id));
            }
        }
        let mut replayed = 0;
        for page in letters.chunks(PAGE) {
            let mut pipeline = Pipeline::with_capacity(page.len());
            for Letter { topic, group, entry, .. } in page {
                let keys = &self.client.keys;
                let replay = keys.source(topic, group.as_str(), true);
                let mut command = scripts::REPLAY.on(&[
                    &keys.dead(topic, group.as_str()),
                    &replay.stream,
                    &keys.settings(topic, group.as_str()),
                ]);
                command.arg(group.as_str()).arg(entry).arg(keys.wake(group.as_str()).as_str());
                command.arg(format!("due {topic} 0"));
                pipeline.add_command(command);
            }
            for value in self.client.connection.run(&pipeline).await? {
                replayed += number(&reply(value)?) as u64;
            }
        }
        Ok(replayed)
    }

    pub(super) async fn drop(&self, letters: Vec<Letter>) -> Result<u64> {
        let mut dropped = 0;
        for page in letters.chunks(PAGE) {
            let mut pipeline = Pipeline::with_capacity(page.len());
            for Letter { topic, group, entry, .. } in page {
                pipeline.cmd("XDEL").arg(self.client.keys.dead(topic, group.as_str())).arg(entry);
            }
            for value in self.client.connection.run(&pipeline).await? {
                dropped += number(&reply(value)?) as u64;
            }
        }
        Ok(dropped)
    }
}

/// Adds the letters of a page that match the filter; returns their number.
fn choose(
    page: Value,
    topic: &SmolStr,
    group: &Group,
    filter: &DeadLetterFilter,
    letters: &mut Vec<Letter>,
) -> usize {
    let before = letters.len();
    for entry in parts(page).into_iter().filter_map(|value| codec::read(value, topic)) {
        let id = entry.id;
        let letter = letter(entry, topic, group);
        let fits = filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&letter.message.subject))
            && filter.reason.is_none_or(|reason| reason == letter.reason);
        if fits {
            letters.push(Letter { topic: topic.clone(), group: group.clone(), entry: id, letter });
        }
    }
    letters.len() - before
}

pub(super) fn unknown(group: &Group) -> Error {
    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
}

fn id(entry: &Value) -> Option<String> {
    match entry {
        Value::Array(parts) => parts.first().map(|id| text(id).to_owned()),
        _ => None,
    }
}

fn letter(entry: Entry, topic: &str, group: &Group) -> DeadLetter {
    let field =
        |name: &str| entry.extra.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str());
    let dead_at =
        field(headers::DLQ_TIME).and_then(headers::time).or(entry.id.time()).unwrap_or(Timestamp::UNIX_EPOCH);
    let reason = field(headers::DLQ_REASON)
        .and_then(|word| Reason::ALL.into_iter().find(|reason| reason.as_str() == word))
        .unwrap_or(Reason::Permanent);
    let id = format_smolstr!("{topic}/{group}/{}", entry.id);
    let error = field(headers::DLQ_ERROR).map(headers::unescape).unwrap_or_default();
    let attempts = field(headers::DLQ_ATTEMPTS).and_then(|count| count.parse().ok()).unwrap_or(0);
    let first = field(headers::FIRST_ATTEMPT).and_then(headers::time).unwrap_or(dead_at);
    let published = entry.origin.time().unwrap_or(dead_at);
    let mut letter = DeadLetter::new(id, group.clone(), entry.message, reason, dead_at);
    letter.error = error;
    letter.attempts = attempts;
    letter.published_at = published;
    letter.first_attempt_at = first;
    letter
}
