//! Operator functions of the memory transport: list and replay dead letters, list, seek and delete groups, apply
//! topology.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use smol_str::{SmolStr, format_smolstr};
use tokio::time::Instant;

use super::MemoryTransport;
use super::connection::State;
use super::group::Entry;
use super::subscribe::{first, owe_from};
use crate::delivery::Rejection;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Group;
use crate::transport::topology::compare_group;
use crate::transport::{
    Admin, Change, DeadLetter, DeadLetterFilter, GroupStatus, Mode, Start, Subscribe, Topology,
};

/// Dead letters in the order in which they were rejected. Each one keeps the pin of its message in the log.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    letters: BTreeMap<u64, StoredDeadLetter>,
    next: u64,
}

#[derive(Debug)]
struct StoredDeadLetter {
    group: Group,
    entry: Entry,
    rejection: Rejection,
    dead_at: Timestamp,
}

impl DeadLetters {
    pub(super) fn dead_letter(
        &mut self,
        group: Group,
        entry: Entry,
        rejection: Rejection,
        dead_at: Timestamp,
    ) {
        self.next += 1;
        self.letters.insert(self.next, StoredDeadLetter { group, entry, rejection, dead_at });
    }

    fn chosen(&self, filter: &DeadLetterFilter) -> Vec<u64> {
        let limit = if filter.limit == 0 { usize::MAX } else { filter.limit };
        (self.letters.iter())
            .filter(|(id, letter)| letter.matches(**id, filter))
            .map(|(id, _)| *id)
            .take(limit)
            .collect()
    }

    fn count(&self, group: &Group) -> u64 {
        self.letters.values().filter(|letter| letter.group == *group).count() as u64
    }
}

impl StoredDeadLetter {
    fn matches(&self, id: u64, filter: &DeadLetterFilter) -> bool {
        (filter.ids.is_empty() || filter.ids.contains(&name(id)))
            && filter.group.as_ref().is_none_or(|group| *group == self.group)
            && filter.subject.as_ref().is_none_or(|pattern| pattern.matches(&self.entry.message.subject))
            && filter.reason.is_none_or(|reason| reason == self.rejection.reason)
    }

    fn letter(&self, id: u64) -> DeadLetter {
        let entry = &self.entry;
        let message = (*entry.message).clone();
        let mut letter =
            DeadLetter::new(name(id), self.group.clone(), message, self.rejection.reason, self.dead_at);
        letter.error = self.rejection.error.clone();
        letter.attempts = entry.attempt;
        letter.published_at = entry.published_at;
        letter.first_attempt_at = entry.first_attempt_at.unwrap_or(self.dead_at);
        letter
    }
}

fn name(id: u64) -> SmolStr {
    format_smolstr!("{id}")
}

fn unknown(group: &Group) -> Error {
    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
}

impl State {
    /// Returns the change that the group of `spec` needs to match `spec`, or `None` when it needs none.
    fn compare(&self, spec: &Subscribe) -> Option<Change> {
        let Mode::Group(name) = &spec.mode else { return None };
        compare_group(spec, self.names.get(name).map(|place| self.groups[*place].terms()))
    }
}

impl MemoryTransport {
    /// Runs `step` under the lock, after the due timers of the bus and of all groups have been processed.
    fn admin_step<T>(
        &self,
        operation: &'static str,
        step: impl FnOnce(&mut State) -> Result<T>,
    ) -> BoxFuture<'_, Result<T>>
    where
        T: Send + 'static,
    {
        let run = || {
            let now = Instant::now();
            let mut state = self.connection.bus.lock();
            self.connection.check()?;
            state.advance(now);
            state.groups.iter_mut().for_each(|(_, group)| group.advance(now));
            step(&mut state)
        };
        let result = run().map_err(|error| error.during(operation));
        Box::pin(std::future::ready(result))
    }
}

impl Admin for MemoryTransport {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.admin_step("list dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            Ok(chosen.into_iter().map(|id| state.dead.letters[&id].letter(id)).collect())
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("replay dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            // Checked for all letters before the first one moves: a letter whose group does not exist would be lost.
            for id in &chosen {
                let group = &state.dead.letters[id].group;
                if !state.names.contains_key(group) {
                    return Err(unknown(group).with("dead_letter", id));
                }
            }
            for id in &chosen {
                let Some(letter) = state.dead.letters.remove(id) else { continue };
                let group = &mut state.groups[state.names[&letter.group]];
                group.add(letter.entry.replay());
                group.wake_one();
            }
            Ok(chosen.len() as u64)
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.admin_step("drop dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            for id in &chosen {
                if let Some(letter) = state.dead.letters.remove(id) {
                    state.log.unpin(letter.entry.number);
                }
            }
            Ok(chosen.len() as u64)
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.admin_step("list groups", |state| {
            let mut all: Vec<GroupStatus> = (state.groups.iter())
                .map(|(_, group)| {
                    let counts = group.counts();
                    let mut status = GroupStatus::new(group.name.clone(), group.filters.clone());
                    status.waiting = counts.waiting as u64;
                    status.in_flight = counts.in_flight as u64;
                    status.retrying = counts.delayed as u64;
                    status.dead = state.dead.count(&group.name);
                    status.oldest_unsettled = counts.oldest;
                    status.members = group.members.iter().filter(|member| !member.stopped).count() as u64;
                    status
                })
                .collect();
            all.sort_by(|a, b| a.group.cmp(&b.group));
            Ok(all)
        })
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.admin_step("plan topology", move |state| {
            let wanted = topology.subscriptions()?;
            Ok(wanted.iter().filter_map(|spec| state.compare(spec)).collect())
        })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        let bus = self.connection.bus.clone();
        self.admin_step("apply topology", move |state| {
            let mut changes = Vec::new();
            for spec in topology.subscriptions()? {
                let (Some(change), Mode::Group(name)) = (state.compare(&spec), &spec.mode) else { continue };
                match state.names.get(name).copied() {
                    Some(place) => state.change_group(place, &spec)?,
                    None => drop(state.add_group(bus.next_id(), name.clone(), &spec)),
                }
                changes.push(change);
            }
            Ok(changes)
        })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.admin_step("seek", |state| {
            let place = *state.names.get(&group).ok_or_else(|| unknown(&group))?;
            let group = &mut state.groups[place];
            let from = first(&state.log, start);
            let back = start != Start::New && from == state.log.first();
            let mut given_up = group.clear();
            given_up.sort_by_key(|entry| entry.number);
            // The messages from `from` on are pinned before the old entries are unpinned, so that the log drops none
            // of them in between. Entries that the log has already dropped stay in the group when it seeks to the
            // oldest message.
            let kept = given_up.extract_if(.., |entry| back && entry.number < from);
            kept.for_each(|entry| group.add(entry.afresh()));
            owe_from(group, &mut state.log, from);
            for entry in given_up {
                state.log.unpin(entry.number);
            }
            group.wake_all();
            Ok(())
        })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.admin_step("delete group", |state| {
            let place = state.names.remove(&group).ok_or_else(|| unknown(&group))?;
            let mut group = state.groups.remove(place);
            state.routes.forget();
            for entry in group.clear() {
                state.log.unpin(entry.number);
            }
            group.members.iter().for_each(|member| member.wake.notify_one());
            Ok(())
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        let start = Instant::now();
        self.admin_step("ping", move |_| Ok(start.elapsed()))
    }
}
