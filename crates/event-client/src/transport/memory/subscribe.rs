//! Subscriptions in memory: groups with their start position, broadcast listeners, and the task that feeds each one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::{Connection, GroupRef, State};
use super::group::{Entry, Fetched, GroupState};
use super::log::Log;
use super::settle::Settler;
use crate::bounds;
use crate::delivery::{Delivery, DeliveryInfo, Settle};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::{Group, Pattern, Subject};
use crate::subscription::{Feed, Health, Subscription};
use crate::supervise;
use crate::telemetry::count_expired;
use crate::transport::topology::compare_group;
use crate::transport::{Mode, Start, Subscribe};

/// Largest number of deliveries fetched under one hold of the lock, so that publishers are not blocked for long.
const BATCH: usize = 512;

pub(super) fn subscribe(connection: &Arc<Connection>, spec: Subscribe) -> Result<Subscription> {
    let spec = spec.checked()?;
    let (feed, subscription) = Subscription::channel(spec.max_in_flight);
    let connection = connection.clone();
    match spec.mode.clone() {
        Mode::Group(name) => {
            let membership = Membership::join(connection, name, &spec)?;
            tokio::spawn(supervise::run("memory member", feed_member(feed, membership), || {}));
        }
        Mode::Broadcast => {
            let listening = Listening::join(connection, &spec)?;
            tokio::spawn(supervise::run("memory broadcast", feed_listener(feed, listening), || {}));
        }
    }
    Ok(subscription)
}

/// Returns the number of the first record that a subscription with `start` receives.
pub(super) fn first(log: &Log, start: Start) -> u64 {
    match start {
        Start::New => log.end(),
        Start::Earliest => log.first(),
        Start::Time(time) => log.find_time(time),
        Start::Position(Position(at)) => u64::try_from(at).unwrap_or(u64::MAX).clamp(log.first(), log.end()),
    }
}

/// Adds to `group` all matching records of the log from `start` on, and pins them.
pub(super) fn owe_from(group: &mut GroupState, log: &mut Log, start: u64) {
    for number in start..log.end() {
        let Some(record) = log.get(number) else { continue };
        if group.filters.iter().any(|filter| filter.matches(&record.message.subject)) {
            group.add(Entry::new(number, record.message.clone(), record.published_at, record.expires));
            log.pin(number);
        }
    }
}

impl State {
    /// Creates a group with all matching records from its start position on.
    pub(super) fn add_group(&mut self, uid: u64, name: Group, spec: &Subscribe) -> usize {
        let mut group = GroupState::new(uid, name.clone(), spec.filters.clone(), spec.keyed);
        let start = first(&self.log, spec.start);
        owe_from(&mut group, &mut self.log, start);
        let place = self.groups.insert(group);
        self.names.insert(name, place);
        self.routes.forget();
        place
    }

    /// Changes the filters and the key order of an existing group to those of `spec`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when the group has live members and `spec.keyed` differs from the group.
    pub(super) fn change_group(&mut self, place: usize, spec: &Subscribe) -> Result<()> {
        let group = &mut self.groups[place];
        if group.keyed() != spec.keyed {
            if group.members.iter().any(|member| !member.stopped) {
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

/// The membership of a live subscription in its group. On drop it leaves the group and its leases start to run out.
struct Membership {
    connection: Arc<Connection>,
    group: GroupRef,
    id: u64,
    lease: Duration,
    wake: Arc<Notify>,
}

/// Next step of a feeding task.
enum Next {
    /// It fetched entries, or has to fetch again.
    Deliver,
    /// It waits for a wake-up or until this time.
    Wait(Option<Instant>),
    /// Its group was deleted or its connection closed.
    End,
}

impl Membership {
    fn join(connection: Arc<Connection>, name: Group, spec: &Subscribe) -> Result<Self> {
        let bus = &connection.bus;
        let id = bus.next_id();
        let now = Instant::now();
        let mut state = bus.lock();
        let state = &mut *state;
        connection.check()?;
        state.advance(now);
        let known = state.names.get(&name).copied();
        let change = compare_group(spec, known.map(|place| &state.groups[place]).map(GroupState::terms));
        let follows = connection.provision.group(change.as_ref())?;
        let place = match known {
            Some(place) if !follows => place,
            Some(place) => {
                state.change_group(place, spec)?;
                place
            }
            None => state.add_group(bus.next_id(), name, spec),
        };
        let group = &mut state.groups[place];
        let (uid, wake) = (group.uid, group.join(id, connection.id));
        Ok(Self {
            group: GroupRef { place, uid },
            id,
            lease: spec.lease,
            wake,
            connection: connection.clone(),
        })
    }

    fn fetch(&self, most: usize, out: &mut Vec<Fetched>) -> Next {
        let now = Instant::now();
        let mut state = self.connection.bus.lock();
        let state = &mut *state;
        state.advance(now);
        let next_due = state.schedule.next_due();
        let Some(group) = state.groups.get_mut(self.group.place).filter(|group| group.uid == self.group.uid)
        else {
            return Next::End;
        };
        if group.member(self.id).is_none() {
            return Next::End;
        }
        group.advance(now);
        count_expired("memory", group.fetch(self.id, most, now, &mut state.log, out));
        if out.is_empty() {
            group.wait(self.id);
            let timers = [next_due, group.next_timer()];
            return Next::Wait(timers.into_iter().flatten().min());
        }
        // The remaining entries are for another member that has free slots.
        group.wake_one();
        Next::Deliver
    }

    fn stop(&self) {
        if let Some(group) = self.connection.bus.lock().group(self.group) {
            group.stop(self.id);
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let until = bounds::from_now(self.lease);
        if let Some(group) = self.connection.bus.lock().group(self.group) {
            group.part(self.id, until);
        }
    }
}

async fn feed_member(feed: Feed, member: Membership) {
    let settle: Arc<dyn Settle> = Arc::new(Settler::new(&member.connection, member.group, member.lease));
    let mut batch = Vec::with_capacity(feed.free().min(BATCH));
    feed.report(Health::Live);
    while room(&feed, &member.connection).await {
        match member.fetch(feed.free().min(BATCH), &mut batch) {
            Next::Deliver => {
                for fetched in batch.drain(..) {
                    // Only this task takes slots, so the slots that were free before are still free.
                    let Some(slot) = feed.try_slot() else {
                        unreachable!("a slot was taken by another task")
                    };
                    let mut info = DeliveryInfo::new(fetched.attempt);
                    info.position = Some(Position(u128::from(fetched.number)));
                    info.published_at = Some(fetched.published_at);
                    info.replayed = fetched.replayed;
                    feed.push(Delivery::new(fetched.message, info, settle.clone(), fetched.token, slot));
                }
                tokio::task::coop::consume_budget().await;
            }
            Next::Wait(until) => wait(&feed, &member.connection, &member.wake, until).await,
            Next::End => break,
        }
    }
    member.stop();
    feed.report(Health::Stopped);
    if !member.connection.closed.is_cancelled() && feed.stopped().is_cancelled() {
        // Deliveries that the consumer has taken stay leased while it holds the subscription.
        tokio::select! {
            () = feed.gone().cancelled() => {}
            () = member.connection.closed.cancelled() => {}
        }
    }
}

/// Waits until at least one slot is free. Returns `false` when the subscription has stopped or the connection is
/// closed.
async fn room(feed: &Feed, connection: &Connection) -> bool {
    let over = || feed.stopped().is_cancelled() || connection.closed.is_cancelled();
    if feed.free() == 0 && !over() {
        tokio::select! {
            slot = feed.slot() => drop(slot),
            () = feed.stopped().cancelled() => {}
            () = connection.closed.cancelled() => {}
        }
    }
    !over()
}

async fn wait(feed: &Feed, connection: &Connection, wake: &Notify, until: Option<Instant>) {
    let due = async {
        match until {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wake.notified() => {}
        () = due => {}
        () = feed.stopped().cancelled() => {}
        () = connection.closed.cancelled() => {}
    }
}

/// Broadcast subscriptions; each reads the log at its own pace.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Listener>);

#[derive(Debug)]
struct Listener {
    id: u64,
    filters: Vec<Pattern>,
    wake: Arc<Notify>,
    /// Number of the next record to read.
    next: u64,
    /// It has read all matching records and waits for a wake-up.
    idle: bool,
}

impl Listeners {
    pub(super) fn matching(&self, subject: &Subject) -> Vec<u64> {
        let matches = |listener: &&Listener| listener.filters.iter().any(|filter| filter.matches(subject));
        self.0.iter().filter(matches).map(|listener| listener.id).collect()
    }

    /// Wakes an idle listener for the new record `number`, which matches.
    pub(super) fn wake(&mut self, id: u64, number: u64) {
        if let Some(listener) = self.0.iter_mut().find(|listener| listener.id == id && listener.idle) {
            // The records in between did not match, so they do not count as missed.
            listener.next = number;
            listener.idle = false;
            listener.wake.notify_one();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.iter().for_each(|listener| listener.wake.notify_one());
    }
}

/// The registration of a listener, removed on drop.
struct Listening {
    connection: Arc<Connection>,
    id: u64,
    wake: Arc<Notify>,
}

/// Deliveries for a listener, and the number of records that the log dropped before the listener read them.
#[derive(Default)]
struct Heard {
    deliveries: VecDeque<Delivery>,
    missed: u64,
}

impl Listening {
    fn join(connection: Arc<Connection>, spec: &Subscribe) -> Result<Self> {
        let id = connection.bus.next_id();
        let wake = Arc::new(Notify::new());
        let mut state = connection.bus.lock();
        connection.check()?;
        state.advance(Instant::now());
        let next = first(&state.log, spec.start);
        let filters = spec.filters.clone();
        state.listeners.0.push(Listener { id, filters, wake: wake.clone(), next, idle: false });
        state.routes.forget();
        drop(state);
        Ok(Self { connection, id, wake })
    }

    fn fetch(&self, feed: &Feed, out: &mut Heard) -> Next {
        let now = Instant::now();
        let mut state = self.connection.bus.lock();
        let State { log, schedule, listeners, .. } = {
            state.advance(now);
            &mut *state
        };
        let Some(listener) = listeners.0.iter_mut().find(|listener| listener.id == self.id) else {
            return Next::End;
        };
        out.missed = log.first().saturating_sub(listener.next);
        listener.next += out.missed;
        let end = log.end().min(listener.next + BATCH as u64);
        while listener.next < end {
            let Some(record) = log.get(listener.next) else { break };
            let current = record.expires.is_none_or(|at| at > now);
            if current && listener.filters.iter().any(|filter| filter.matches(&record.message.subject)) {
                let Some(slot) = feed.try_slot() else { return Next::Deliver };
                let mut info = DeliveryInfo::new(1);
                info.position = Some(Position(u128::from(listener.next)));
                info.published_at = Some(record.published_at);
                out.deliveries.push_back(Delivery::unleased(record.message.clone(), info, Some(slot)));
            }
            listener.next += 1;
        }
        if listener.next < log.end() || !out.deliveries.is_empty() || out.missed > 0 {
            return Next::Deliver;
        }
        listener.idle = true;
        Next::Wait(schedule.next_due())
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.connection.bus.lock();
        state.listeners.0.retain(|listener| listener.id != self.id);
        state.routes.forget();
    }
}

async fn feed_listener(feed: Feed, listening: Listening) {
    let connection = listening.connection.clone();
    let mut heard = Heard::default();
    feed.report(Health::Live);
    while room(&feed, &connection).await {
        match listening.fetch(&feed, &mut heard) {
            Next::Deliver => {
                feed.missed("memory", heard.missed);
                heard.deliveries.drain(..).for_each(|delivery| feed.push(delivery));
                tokio::task::coop::consume_budget().await;
            }
            Next::Wait(until) => wait(&feed, &connection, &listening.wake, until).await,
            Next::End => break,
        }
    }
}
