//! Reads the dead letters that were replayed to the group. They are fetched one by one, and deleted from the server when
//! they are settled.

use std::sync::Arc;

use futures_util::FutureExt;

use super::jobs::{Done, Jobs};
use crate::keyed::backlog::Backlog;
use crate::keyed::checkpoint::{Mark, REPLAYS};
use crate::keyed::member::KeyedMember;
use crate::keyed::open::{self, Fetched};
use crate::kv;
use event_transport::error::Result;

/// Largest number of replays that are fetched at a time.
const MOST: usize = 64;

pub(super) struct Replays {
    member: Arc<KeyedMember>,
    /// There may be replays that were not fetched.
    due: bool,
    fetching: bool,
    /// Replays below this sequence are deleted from the server.
    purged: u64,
}

impl Replays {
    pub(super) fn new(member: Arc<KeyedMember>) -> Self {
        Self { member, due: false, fetching: false, purged: 0 }
    }

    /// Notes that there may be replays to fetch.
    pub(super) fn expect(&mut self) {
        self.due = true;
    }

    /// Fetches replays, as far as there is `room`.
    pub(super) fn fetch(&mut self, room: usize, reading: u64, backlog: &Backlog, jobs: &mut Jobs) {
        if room == 0 || !self.due || self.fetching {
            return;
        }
        self.due = false;
        self.fetching = true;
        let next = backlog.marks.get(REPLAYS).map_or(0, |mark| mark.next);
        let room = room.min(MOST);
        let job = open::replays(self.member.client.clone(), self.member.group.clone(), next, room);
        jobs.start(job.map(move |result| Done::Replays { reading, room, result }));
    }

    /// Notes the end of a fetch of at most `room` replays.
    pub(super) fn fetched(&mut self, room: usize, result: &Result<Vec<Fetched>>) {
        self.fetching = false;
        self.due |= result.as_ref().is_ok_and(|found| found.len() == room);
    }

    /// Ignores the running fetch.
    pub(super) fn forget(&mut self) {
        self.fetching = false;
    }

    /// Deletes settled replays from the server. The settlements must be in the leader's record.
    pub(super) fn purge(&mut self, backlog: &Backlog) {
        let floor = backlog.marks.get(REPLAYS).map_or(0, Mark::floor);
        if floor <= self.purged.max(1) {
            return;
        }
        self.purged = floor;
        let (client, group) = (self.member.client.clone(), self.member.group.clone());
        self.member.client.tasks.spawn(async move {
            let (work, subject) = (client.names.work(), client.names.replayed(&group));
            let _ = kv::purge_below(&client, &work, &subject, floor).await;
        });
    }
}
