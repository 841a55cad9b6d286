//! The steps before and after each write of the leader's record: collects what the write stores, and handles the loss of
//! the record. `leadership.rs` performs the write.

use super::super::{closed, lost};
use super::*;

impl Leader {
    pub(super) fn lead(&mut self, taken: Taken) {
        tracing::debug!(group = %self.member.group, sequence = taken.sequence, "leads");
        self.term += 1;
        self.role = Role::Leads { sequence: taken.sequence };
        self.record = taken.record;
        self.backlog.clear();
        self.backlog.marks = taken.progress.topics;
        self.again = taken.again;
        self.loaded.clear();
        self.dirty = false;
        self.wrote_at(taken.asked);
        self.read_anew(Duration::ZERO);
    }

    pub(super) fn wrote_at(&mut self, asked: Instant) {
        let lease = self.record.lease();
        self.written = asked;
        self.failures = 0;
        self.write_again = Instant::now();
        // Ends shortly before a standby's timeout, so that two leaders never overlap.
        self.member.set_until(asked + lease - lease / 20);
    }

    /// Writes the record when there are changes or a renewal is due. Returns the time at which to run again.
    pub(super) fn write(&mut self, now: Instant) -> Option<Instant> {
        let Role::Leads { sequence } = self.role else { return None };
        if self.writing.is_some() {
            return None;
        }
        let lease = self.record.lease();
        let idle = self.stopping && self.backlog.all_out().is_empty() && self.dead_lettering.is_empty();
        // A member whose subscription was dropped does not renew.
        let beat = (!self.feed.gone().is_cancelled()).then(|| self.written + lease / 3);
        let wanted = self.dirty || idle || !self.pending.is_empty();
        let at = if wanted { Some(self.write_again) } else { beat.map(|beat| beat.max(self.write_again)) };
        if at.is_none_or(|at| at > now) {
            return at;
        }
        self.own.beat += 1;
        let progress = Progress {
            left: idle,
            epoch: self.record.epoch,
            changes: self.record.changes,
            topics: self.backlog.marks.clone(),
            ..self.own.clone()
        };
        self.dirty = false;
        self.writing = Some(std::mem::take(&mut self.pending));
        let within = self.connection.config.request_timeout.min((lease / 3).max(Duration::from_millis(500)));
        let (term, left) = (self.term, idle);
        let step =
            leadership::write(self.connection.clone(), self.member.group.clone(), progress, sequence, within);
        self.jobs.push(step.map(move |result| Done::Written { term, asked: now, left, result }).boxed());
        None
    }

    pub(super) fn wrote(
        &mut self,
        asked: Instant,
        left: bool,
        result: Result<Written>,
        settle: &Arc<dyn Settle>,
    ) {
        let written = self.writing.take().unwrap_or_default();
        match result {
            Ok(Written::Stored(sequence)) => {
                self.role = Role::Leads { sequence };
                self.wrote_at(asked);
                for (_, answer) in written.answers {
                    let _ = answer.send(Ok(()));
                }
                for (token, slot) in written.claims {
                    if let Some((message, info)) = self.backlog.hand_out(token) {
                        self.member.out.fetch_add(1, Ordering::AcqRel);
                        self.feed.push(Delivery::new(message, info, settle.clone(), token, slot));
                    }
                }
                self.purge_replays();
                if left {
                    self.connection.tell_led(&self.member.group);
                    self.over = true;
                }
                if self.open_at.is_none() && !self.opening {
                    self.end_outage();
                }
            }
            Ok(Written::Ours(sequence)) => {
                self.role = Role::Leads { sequence };
                self.pending.put_back(written);
                self.dirty = true;
            }
            Ok(Written::Lost) => {
                tracing::info!(group = %self.member.group, "another member leads this group now");
                self.pending.put_back(written);
                self.follow();
            }
            Err(error) => {
                self.pending.put_back(written);
                self.dirty = true;
                self.failures = (self.failures + 1).min(5);
                self.write_again = Instant::now() + Duration::from_millis(25 << self.failures);
                self.pending.expire(self.connection.config.request_timeout, &error);
                self.begin_outage(&error.to_string());
                // The state stream itself may have been deleted.
                self.reload();
            }
        }
    }

    /// Starts to stand by because another member leads: nothing held here belongs to this member any more.
    pub(super) fn follow(&mut self) {
        self.term += 1;
        self.writing = None;
        self.marks = std::mem::take(&mut self.backlog.marks);
        self.void();
        self.read_anew(Duration::ZERO);
        self.open_at = None;
        let look = Instant::now() + self.record.lease() / 4;
        self.role = Role::StandBy { look, looking: false, seen: None };
    }

    /// Drops everything held here, because it can no longer be settled.
    pub(super) fn void(&mut self) {
        self.pending.give_up(lost);
        if let Some(writing) = &mut self.writing {
            writing.give_up(lost);
        }
        self.dead_lettering.clear();
        self.backlog.clear();
        self.again.clear();
        self.loaded.clear();
        self.member.out.store(0, Ordering::Release);
        self.feed.take_back();
    }

    /// Fails the answers that wait for a write, because no write follows.
    pub(super) fn give_up(&mut self) {
        // Over a connection that has ended, it is unknown whether the record was written.
        let error = if self.connection.closed.is_cancelled() { closed } else { lost };
        self.pending.give_up(error);
        if let Some(mut writing) = self.writing.take() {
            writing.give_up(error);
        }
        self.close_readers();
    }

    pub(super) fn on_record(&mut self, result: Result<Claimed>) {
        let pause = (self.record.lease() / 4).min(Duration::from_secs(2));
        let Role::StandBy { look, looking, seen } = &mut self.role else { return };
        *looking = false;
        *look = Instant::now() + pause;
        match result {
            Ok(Claimed::Led(now)) => {
                *seen = Some(now);
                self.end_outage();
            }
            Ok(Claimed::Raced) => *look = Instant::now(),
            Ok(Claimed::Taken(taken)) => self.lead(*taken),
            Ok(Claimed::Gone) => self.over = true,
            Err(error) => self.begin_outage(&error.to_string()),
        }
    }

    pub(super) fn look_soon(&mut self) {
        if let Role::StandBy { look, .. } = &mut self.role {
            *look = Instant::now();
        }
    }
}
