//! Subscribing: groups with their start, broadcast listeners, and the task that feeds each subscription.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::connection::{Connection, GroupRef, State};
use super::group::{Entry, Fetched, GroupState};
use super::log::Log;
use super::publish::count_expired;
use super::settle::Settler;
use crate::bounds;
use crate::delivery::{Delivery, DeliveryInfo, Settle};
use crate::error::{Error, ErrorKind, Result};
use crate::message::Position;
use crate::subject::{Group, Pattern, Subject};
use crate::subscription::{Feed, Health, Subscription};
use crate::supervise;
use crate::transport::topology::compare_group;
use crate::transport::{Mode, Start, Subscribe};

/// Most deliveries that one hold of the lock hands out, so that publishers are not kept waiting.
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

/// Number of the first record that a subscription with `start` sees.
pub(super) fn first(log: &Log, start: Start) -> u64 {
    match start {
        Start::New => log.end(),
        Start::Earliest => log.first(),
        Start::Time(time) => log.find_time(time),
        Start::Position(Position(at)) => u64::try_from(at).unwrap_or(u64::MAX).clamp(log.first(), log.end()),
    }
}

/// Owes to `group` what the log has from `start` on.
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
    /// A new group, owed what is there from its start on.
    pub(super) fn add_group(&mut self, uid: u64, name: Group, spec: &Subscribe) -> usize {
        let mut group = GroupState::new(uid, name.clone(), spec.filters.clone(), spec.keyed);
        let start = first(&self.log, spec.start);
        owe_from(&mut group, &mut self.log, start);
        let place = self.groups.insert(group);
        self.names.insert(name, place);
        self.routes.forget();
        place
    }

    /// Makes an existing group what `spec` says.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when its live members treat keys otherwise.
    pub(super) fn change_group(&mut self, place: usize, spec: &Subscribe) -> Result<()> {
        let group = &mut self.groups[place];
        if group.keyed() != spec.keyed {
            if group.members.iter().any(|member| !member.stopped) {
                return Err(Error::new(
                    ErrorKind::Config,
                    "live members of this group keep the order of keys and this one does not, or the other way round",
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

/// A live subscription's place in its group. Dropped, it leaves the group and its leases begin to run out.
struct Membership {
    connection: Arc<Connection>,
    group: GroupRef,
    id: u64,
    lease: Duration,
    wake: Arc<Notify>,
}

/// What a feeding task does next.
enum Next {
    /// It has something, or was told to look again.
    Deliver,
    /// Nothing to do until it is woken or the time comes.
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
        count_expired(group.fetch(self.id, most, now, &mut state.log, out));
        if out.is_empty() {
            group.wait(self.id);
            let timers = [next_due, group.next_timer()];
            return Next::Wait(timers.into_iter().flatten().min());
        }
        // What is left is for another member that has room.
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
                    // Only this task takes slots, so what was free still is.
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
        // Taken deliveries stay leased while the subscription is held.
        tokio::select! {
            () = feed.gone().cancelled() => {}
            () = member.connection.closed.cancelled() => {}
        }
    }
}

/// Waits until at least one delivery may be handed over; `false` when none may be ever again.
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

/// Ephemeral subscribers; each reads the log at its own pace.
#[derive(Debug, Default)]
pub(super) struct Listeners(Vec<Listener>);

#[derive(Debug)]
struct Listener {
    id: u64,
    filters: Vec<Pattern>,
    wake: Arc<Notify>,
    /// Number of the next record to look at.
    next: u64,
    /// It has seen everything that matters to it, and waits.
    idle: bool,
}

impl Listeners {
    pub(super) fn matching(&self, subject: &Subject) -> Vec<u64> {
        let matches = |listener: &&Listener| listener.filters.iter().any(|filter| filter.matches(subject));
        self.0.iter().filter(matches).map(|listener| listener.id).collect()
    }

    /// A record that matches was added.
    pub(super) fn wake(&mut self, id: u64, number: u64) {
        if let Some(listener) = self.0.iter_mut().find(|listener| listener.id == id && listener.idle) {
            // What came in between was not for it, so it does not count as missed.
            listener.next = number;
            listener.idle = false;
            listener.wake.notify_one();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.iter().for_each(|listener| listener.wake.notify_one());
    }
}

/// A listener's place. Dropped, it is forgotten.
struct Listening {
    connection: Arc<Connection>,
    id: u64,
    wake: Arc<Notify>,
}

/// Records fetched for a listener, and how many it was too slow for.
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
