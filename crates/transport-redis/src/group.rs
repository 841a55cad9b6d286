//! Creates and changes groups: their definition for the whole namespace, and their Redis groups on each topic.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::client::Client;
use super::codec::{EntryId, number, parts, text};
use super::error::{odd, reply};
use super::filters::Filters;
use super::keys::Source;
use super::scripts;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::{Group, Pattern};
use event_transport::topology::compare_group;
use event_transport::{Action, Change, Difference, Start, Subscribe};

/// The definition of a group, shared by all its members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Definition {
    pub(super) filters: Vec<SmolStr>,
    pub(super) keyed: bool,
    /// Topics on which the group has, or is about to have, a Redis group.
    pub(super) topics: BTreeSet<SmolStr>,
}

impl Definition {
    pub(super) fn patterns(&self) -> Vec<Pattern> {
        self.filters.iter().filter_map(|filter| Pattern::new(filter).ok()).collect()
    }

    /// Topics that its patterns name.
    fn named(&self) -> impl Iterator<Item = SmolStr> {
        self.patterns().into_iter().filter_map(|pattern| pattern.topic().map(SmolStr::new))
    }

    pub(super) fn is_wild(&self) -> bool {
        self.patterns().iter().any(|pattern| pattern.topic().is_none())
    }
}

/// A group on one topic.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) log: Arc<Source>,
    pub(super) replay: Arc<Source>,
    /// Its name in Redis.
    pub(super) name: Arc<str>,
    pub(super) filters: Filters,
    /// Version of the filters.
    pub(super) version: SmolStr,
    pub(super) delivered: EntryId,
    /// The group was removed from the server, and has just been created again.
    pub(super) lost: bool,
}

/// A member that joins with a definition.
pub(super) struct Joining<'a> {
    pub(super) consumer: &'a str,
    pub(super) life: u64,
}

/// The definitions of all groups.
#[derive(Clone)]
pub(super) struct Definitions {
    client: Arc<Client>,
}

impl Definitions {
    pub(super) fn new(client: Arc<Client>) -> Self {
        Self { client }
    }

    /// Returns the definition of a group, with its text.
    pub(super) async fn get(&self, group: &Group) -> Result<Option<(String, Definition)>> {
        let mut ask = redis::cmd("HGET");
        ask.arg(self.client.keys.groups()).arg(group.as_str());
        read_definition(&self.client.connection.ask(ask).await?)
    }

    /// Returns every group with its definition, sorted.
    pub(super) async fn all(&self) -> Result<Vec<(Group, Definition)>> {
        let mut ask = redis::cmd("HGETALL");
        ask.arg(self.client.keys.groups());
        let mut all = Vec::new();
        for pair in parts(self.client.connection.ask(ask).await?).chunks(2) {
            let (Ok(group), Some(value)) = (Group::new(text(&pair[0])), pair.get(1)) else { continue };
            if let Some((_, definition)) = read_definition(value)? {
                all.push((group, definition));
            }
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(all)
    }

    /// Creates or changes the group as `spec` requires, as far as that is allowed, and returns its places. `forced`
    /// marks an operator's command, which is always allowed.
    pub(super) async fn define(
        &self,
        group: &Group,
        spec: &Subscribe,
        joining: Option<Joining<'_>>,
        forced: bool,
    ) -> Result<(Definition, Vec<Place>)> {
        // Other clients may change it at the same time; each round one of them succeeds.
        for _ in 0..50 {
            let was = self.get(group).await?;
            let change = compare(spec, was.as_ref().map(|(_, definition)| definition));
            let follows = if forced {
                change.is_some()
            } else {
                self.client.config.provision.group(change.as_ref())?
            };
            let mut wanted = was.as_ref().map(|(_, definition)| definition.clone()).unwrap_or_default();
            if follows {
                wanted.filters = spec.filters.iter().map(|filter| filter.as_str().into()).collect();
                wanted.keyed = spec.keyed;
            }
            let named: Vec<_> = wanted.named().collect();
            if follows {
                self.client.register(&named).await?;
            }
            wanted.topics.extend(named);
            if wanted.is_wild() {
                wanted.topics.extend(self.client.topics().await?);
            }
            let (seen, before) = match &was {
                Some((text, definition)) => (text.as_str(), Some(definition)),
                None => ("", None),
            };
            let keyed_changes = before.is_some_and(|before| before.keyed != wanted.keyed);
            let text = if before == Some(&wanted) {
                seen.to_owned()
            } else {
                serde_json::to_string(&wanted).map_err(|error| {
                    Error::new(ErrorKind::Internal, "a group's definition cannot be serialized")
                        .because(error)
                })?
            };
            let keys = &self.client.keys;
            let mut command = scripts::JOIN.on(&[
                &keys.groups(),
                &keys.members(group.as_str()),
                &keys.tombstone(group.as_str()),
            ]);
            command.arg(group.as_str()).arg(seen).arg(&text).arg(i32::from(keyed_changes));
            match &joining {
                Some(joining) => command.arg(joining.consumer).arg(joining.life),
                None => command.arg("").arg(0),
            };
            match self.client.connection.ask(command).await? {
                Value::Int(1) => {
                    let filters_change = before.is_some_and(|before| before.filters != wanted.filters);
                    let start = |topic: &SmolStr| match before {
                        None => spec.start,
                        Some(before) if before.topics.contains(topic) || filters_change => Start::New,
                        // The topic is newer than the group.
                        Some(_) => Start::Earliest,
                    };
                    let may_create = match before {
                        _ if forced || self.client.config.provision.creates() => Create::Any,
                        None => Create::Any,
                        Some(_) => Create::New,
                    };
                    let places = self.places(group, &wanted, start, may_create).await?;
                    if before.is_some_and(|before| *before != wanted) {
                        self.client.signal(&keys.wake(group.as_str()), "changed").await?;
                    }
                    return Ok((wanted, places));
                }
                Value::Int(-1) => {
                    return Err(Error::new(
                        ErrorKind::Config,
                        "live members of this group keep the order of keys and this one does not, or the other way round",
                    )
                    .with("group", group)
                    .with("keyed", spec.keyed));
                }
                _ => tokio::time::sleep(Duration::from_millis(fastrand::u64(1..20))).await,
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "other clients keep changing this group").with("group", group))
    }

    /// Returns the group's place on each of its topics; creates missing ones.
    async fn places(
        &self,
        group: &Group,
        definition: &Definition,
        start: impl Fn(&SmolStr) -> Start,
        may_create: Create,
    ) -> Result<Vec<Place>> {
        let filters = definition.filters.join(" ");
        let mut pipeline = Pipeline::new();
        for topic in &definition.topics {
            pipeline.add_command(self.ensure(group, topic, start(topic), &filters, may_create));
        }
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let replies = self.client.connection.run(&pipeline).await?;
        definition
            .topics
            .iter()
            .zip(replies)
            .map(|(topic, value)| {
                let answer = match reply(value)? {
                    Value::Nil => return Err(self.client.config.provision.missing(self.place_name(group, topic))),
                    answer => parts(answer),
                };
                let [name, filters, version, delivered, lost] = answer.as_slice() else {
                    return Err(odd("a group on a topic"));
                };
                let lost = number(lost) == 1;
                if lost {
                    tracing::error!(
                        %group, %topic,
                        "the group, or its stream, was removed from the server; it continues after the last entry that is known to be settled"
                    );
                }
                Ok(Place {
                    log: self.client.keys.source(topic, group.as_str(), false),
                    replay: self.client.keys.source(topic, group.as_str(), true),
                    name: text(name).into(),
                    filters: Filters::parse(text(filters)),
                    version: text(version).into(),
                    delivered: text(delivered).parse()?,
                    lost,
                })
            })
            .collect()
    }

    fn ensure(&self, group: &Group, topic: &str, start: Start, filters: &str, may: Create) -> redis::Cmd {
        let keys = &self.client.keys;
        let mut command = scripts::ENSURE.on(&[
            &keys.log(topic),
            &keys.settings(topic, group.as_str()),
            &keys.floors(topic),
        ]);
        command.arg(group.as_str()).arg(start_word(start)).arg(filters).arg(may as u8);
        command
    }

    fn place_name(&self, group: &Group, topic: &str) -> String {
        format!("group {group} of stream {}", self.client.keys.log(topic))
    }

    /// Topics on which a group should exist and does not.
    pub(super) async fn missing_places(&self, group: &Group, definition: &Definition) -> Result<Vec<Change>> {
        let mut missing = Vec::new();
        for topic in &definition.topics {
            let look = self.ensure(group, topic, Start::New, "", Create::No);
            if self.client.connection.ask(look).await? == Value::Nil {
                let of = Difference::new("topic", None, topic.to_string());
                missing.push(Change::new(self.place_name(group, topic), Action::Create, vec![of]));
            }
        }
        Ok(missing)
    }
}

/// Whether a group may be made on a topic.
#[derive(Clone, Copy)]
enum Create {
    No = 0,
    Any = 1,
    /// Where it was not before.
    New = 2,
}

/// Parses a definition that [`Definitions::define`] wrote; returns it with its text.
fn read_definition(value: &Value) -> Result<Option<(String, Definition)>> {
    if *value == Value::Nil {
        return Ok(None);
    }
    let written = text(value);
    let definition = serde_json::from_str(written).map_err(|error| {
        Error::new(ErrorKind::Corrupt, "a group's definition cannot be read").because(error)
    })?;
    Ok(Some((written.to_owned(), definition)))
}

/// The change that the group needs to fulfil `spec`.
pub(super) fn compare(spec: &Subscribe, is: Option<&Definition>) -> Option<Change> {
    let patterns = is.map(|is| (is.patterns(), is.keyed));
    compare_group(spec, patterns.as_ref().map(|(patterns, keyed)| (patterns.as_slice(), *keyed)))
}

/// The start in the form that the scripts take: the last id that is not wanted.
pub(super) fn start_word(start: Start) -> String {
    match last_unwanted(start) {
        None => "new".into(),
        Some(id) => format!("id {id}"),
    }
}

/// The last entry before the start; `None` for entries from now on.
pub(super) fn last_unwanted(start: Start) -> Option<EntryId> {
    match start {
        Start::New => None,
        Start::Earliest => Some(EntryId::default()),
        Start::Time(time) => Some(EntryId { ms: ceil_millis(time), seq: 0 }.before()),
        Start::Position(position) => Some(EntryId::from_position(position).before()),
    }
}

fn ceil_millis(time: Timestamp) -> u64 {
    let millis = time.as_nanosecond().div_euclid(1_000_000)
        + i128::from(time.as_nanosecond().rem_euclid(1_000_000) > 0);
    u64::try_from(millis).unwrap_or(0)
}
