//! The data of a bus, which one lock guards, and the steps that change several of its parts together.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::dead_letters::DeadLetters;
use super::dedup::Dedup;
use super::delayed::Delayed;
use super::group::{Entry, GroupState};
use super::groups::{GroupRef, Groups};
use super::listeners::Listeners;
use super::log::{Log, Usage, weight};
use super::routes::Routes;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::subject::Group;
use crate::telemetry::count_expired;
use crate::topology::compare_group;
use crate::{Change, Mode, Subscribe};

/// The parts are separate structs so that one can be read while another is changed.
pub(super) struct State {
    pub(super) log: Log,
    pub(super) delayed: Delayed,
    pub(super) dedup: Dedup,
    pub(super) groups: Groups,
    pub(super) listeners: Listeners,
    pub(super) routes: Routes,
    pub(super) dead: DeadLetters,
}

impl State {
    pub(super) fn new(limit: Usage) -> Self {
        Self {
            log: Log::new(limit),
            delayed: Delayed::default(),
            dedup: Dedup::default(),
            groups: Groups::default(),
            listeners: Listeners::default(),
            routes: Routes::default(),
            dead: DeadLetters::default(),
        }
    }

    /// Adds a message to the log and to every group that matches; wakes the listeners that match.
    pub(super) fn append(
        &mut self,
        message: Arc<Message>,
        published_at: Timestamp,
        expires: Option<Instant>,
    ) -> u64 {
        let route = self.routes.find(&message.subject, &self.groups, &self.listeners);
        let pins = route.groups.len() as u32;
        let number = self.log.append(message.clone(), published_at, expires, pins);
        for place in &route.groups {
            let group = self.groups.slot(*place);
            group.add(Entry::new(number, message.clone(), published_at, expires));
            group.wake_one();
        }
        for id in &route.listeners {
            self.listeners.wake(*id, number);
        }
        number
    }

    /// Publishes delayed messages that are due.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some(due) = self.delayed.pop(now) {
            self.log.unreserve(weight(&due.message));
            self.append(due.message, due.published_at, due.expires);
        }
    }

    /// Removes entries that expired before any member fetched them.
    pub(super) fn sweep(&mut self, now: Instant) {
        let log = &mut self.log;
        let expired = self.groups.iter_mut().map(|group| group.sweep(now, log)).sum();
        count_expired("memory", expired);
    }

    /// Wakes all members and listeners, so that they check the timers again.
    pub(super) fn wake_all(&mut self) {
        self.groups.iter_mut().for_each(GroupState::wake_all);
        self.listeners.wake_all();
    }

    /// Returns the change that the group of `spec` needs to match `spec`, or `None` when it needs none.
    pub(super) fn compare(&self, spec: &Subscribe) -> Option<Change> {
        let Mode::Group(name) = &spec.mode else { return None };
        compare_group(spec, self.groups.named(name).map(GroupState::terms))
    }

    /// Creates a group with all matching records from its start position on.
    pub(super) fn add_group(&mut self, uid: u64, name: Group, spec: &Subscribe) -> GroupRef {
        let mut group = GroupState::new(uid, name, spec.filters.clone(), spec.keyed);
        let start = self.log.start(spec.start);
        group.add_from(&mut self.log, start);
        self.routes.forget();
        self.groups.insert(group)
    }

    /// Changes the filters and the key order of an existing group to those of `spec`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the group has live members and `spec.keyed` differs from the group.
    pub(super) fn change_group(&mut self, name: &Group, spec: &Subscribe) -> Result<()> {
        let Some(group) = self.groups.named_mut(name) else { return Ok(()) };
        if group.keyed() != spec.keyed {
            if group.live_members() > 0 {
                return Err(Error::new(
                    ErrorKind::Config,
                    "this subscription and the live members of its group differ in `keyed`; use the same value for all",
                )
                .with("group", &group.name)
                .with("keyed", spec.keyed));
            }
            group.set_keyed(spec.keyed);
        }
        if group.filters != spec.filters {
            group.filters.clone_from(&spec.filters);
            self.routes.forget();
        }
        Ok(())
    }
}
