//! Operator functions of the memory transport: list and replay dead letters, list, seek and delete groups, apply
//! topology.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::connection::Connection;
use super::state::State;
use crate::error::{Error, ErrorKind, Result};
use crate::subject::Group;
use crate::{Admin, Change, DeadLetter, DeadLetterFilter, GroupStatus, Mode, Start, Topology};

/// The operator's functions over one connection.
#[derive(Debug)]
pub(super) struct MemoryAdmin {
    connection: Arc<Connection>,
}

fn unknown(group: &Group) -> Error {
    Error::new(ErrorKind::NotFound, "no group of this name exists").with("group", group)
}

impl MemoryAdmin {
    pub(super) fn new(connection: &Arc<Connection>) -> Self {
        Self { connection: connection.clone() }
    }

    /// Runs `step` under the lock, after the due timers of the bus and of all groups have been processed.
    fn step<T>(
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
            state.groups.iter_mut().for_each(|group| group.advance(now));
            step(&mut state)
        };
        let result = run().map_err(|error| error.during(operation));
        Box::pin(std::future::ready(result))
    }
}

impl Admin for MemoryAdmin {
    fn dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<Vec<DeadLetter>>> {
        self.step("list dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            Ok(chosen.into_iter().filter_map(|id| Some(state.dead.get(id)?.letter(id))).collect())
        })
    }

    fn replay_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.step("replay dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            // Checked for all letters before the first one moves: a letter whose group does not exist would be lost.
            for id in &chosen {
                let orphan = state.dead.get(*id).filter(|letter| state.groups.find(&letter.group).is_none());
                if let Some(letter) = orphan {
                    return Err(unknown(&letter.group).with("dead_letter", id));
                }
            }
            for id in &chosen {
                let Some(letter) = state.dead.remove(*id) else { continue };
                let group = state.groups.named_mut(&letter.group).ok_or_else(|| unknown(&letter.group))?;
                group.add(letter.entry.replay());
                group.wake_one();
            }
            Ok(chosen.len() as u64)
        })
    }

    fn drop_dead_letters(&self, filter: DeadLetterFilter) -> BoxFuture<'_, Result<u64>> {
        self.step("drop dead letters", |state| {
            let chosen = state.dead.chosen(&filter);
            for id in &chosen {
                if let Some(letter) = state.dead.remove(*id) {
                    state.log.unpin(letter.entry.number);
                }
            }
            Ok(chosen.len() as u64)
        })
    }

    fn groups(&self) -> BoxFuture<'_, Result<Vec<GroupStatus>>> {
        self.step("list groups", |state| {
            let mut all: Vec<GroupStatus> = (state.groups.iter())
                .map(|group| {
                    let counts = group.counts();
                    let mut status = GroupStatus::new(group.name.clone(), group.filters.clone());
                    status.waiting = counts.waiting as u64;
                    status.in_flight = counts.in_flight as u64;
                    status.retrying = counts.delayed as u64;
                    status.dead = state.dead.count(&group.name);
                    status.oldest_unsettled = counts.oldest;
                    status.members = group.live_members() as u64;
                    status
                })
                .collect();
            all.sort_by(|a, b| a.group.cmp(&b.group));
            Ok(all)
        })
    }

    fn plan(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        self.step("plan topology", move |state| {
            let wanted = topology.subscriptions()?;
            Ok(wanted.iter().filter_map(|spec| state.compare(spec)).collect())
        })
    }

    fn apply(&self, topology: Topology) -> BoxFuture<'_, Result<Vec<Change>>> {
        let bus = self.connection.bus.clone();
        self.step("apply topology", move |state| {
            let mut changes = Vec::new();
            for spec in topology.subscriptions()? {
                let (Some(change), Mode::Group(name)) = (state.compare(&spec), &spec.mode) else { continue };
                if state.groups.find(name).is_some() {
                    state.change_group(name, &spec)?;
                } else {
                    state.add_group(bus.next_id(), name.clone(), &spec);
                }
                changes.push(change);
            }
            Ok(changes)
        })
    }

    fn seek(&self, group: Group, start: Start) -> BoxFuture<'_, Result<()>> {
        self.step("seek", |state| {
            let group = state.groups.named_mut(&group).ok_or_else(|| unknown(&group))?;
            let from = state.log.start(start);
            let back = start != Start::New && from == state.log.first();
            let mut given_up = group.clear();
            given_up.sort_by_key(|entry| entry.number);
            // The messages from `from` on are pinned before the old entries are unpinned, so that the log drops none
            // of them in between. Entries that the log has already dropped stay in the group when it seeks to the
            // oldest message.
            let kept = given_up.extract_if(.., |entry| back && entry.number < from);
            kept.for_each(|entry| group.add(entry.afresh()));
            group.add_from(&mut state.log, from);
            for entry in given_up {
                state.log.unpin(entry.number);
            }
            group.wake_all();
            Ok(())
        })
    }

    fn delete_group(&self, group: Group) -> BoxFuture<'_, Result<()>> {
        self.step("delete group", |state| {
            let mut group = state.groups.remove(&group).ok_or_else(|| unknown(&group))?;
            state.routes.forget();
            for entry in group.clear() {
                state.log.unpin(entry.number);
            }
            group.wake_all(); // its members find out that it is gone
            Ok(())
        })
    }

    fn ping(&self) -> BoxFuture<'_, Result<Duration>> {
        let start = Instant::now();
        self.step("ping", move |_| Ok(start.elapsed()))
    }
}
