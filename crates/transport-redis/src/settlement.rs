//! One settlement: its command, the settlements that share it, and the meaning of its reply.
//!
//! A plain `XACK` does not check who owns the entry, so it is used only while no other consumer can have claimed it;
//! all other settlements are scripts that check the owner first.

use std::sync::Arc;
use std::time::Duration;

use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::codec::{args, number, parts};
use super::connection::Connection;
use super::error::{Failure, reply};
use super::member::{How, Member, Unsettled};
use super::scripts;
use event_transport::bounds::millis;
use event_transport::confirm::Answer;
use event_transport::delivery::{Rejection, Settlement, Token, lease_lost};
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::sync::lock;

pub(super) struct Job {
    pub(super) member: Arc<Member>,
    pub(super) token: Token,
    pub(super) held: Unsettled,
    pub(super) what: What,
    pub(super) answer: Option<Answer<()>>,
    pub(super) at: Instant,
    /// An earlier try may have succeeded.
    pub(super) again: bool,
}

pub(super) enum What {
    Ack,
    Park { after: Duration, error: Option<String> },
    Reject(Rejection),
    Renew,
}

impl From<Settlement> for What {
    fn from(settlement: Settlement) -> Self {
        match settlement {
            Settlement::Ack => Self::Ack,
            Settlement::Retry { after, error } => Self::Park { after, error: Some(error.to_string()) },
            Settlement::Release => Self::Park { after: Duration::ZERO, error: None },
            Settlement::Defer { after } => Self::Park { after, error: None },
            Settlement::Reject(rejection) => Self::Reject(rejection),
        }
    }
}

/// Jobs that share a command.
pub(super) struct Batch {
    kind: Kind,
    jobs: Vec<Job>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// `XACK`, for entries that this consumer certainly owns.
    Plain,
    Checked,
    Park,
    Reject,
    Renew,
}

pub(super) fn gather(batch: Vec<Job>) -> Vec<Batch> {
    let now = Instant::now();
    let mut groups: Vec<Batch> = Vec::new();
    for job in batch {
        let kind = match &job.what {
            What::Ack
                if job.held.attempt == 1
                    && !job.held.source.replay
                    && !job.again
                    && now < job.held.safe_until =>
            {
                Kind::Plain
            }
            What::Ack => Kind::Checked,
            What::Park { .. } => Kind::Park,
            What::Reject(_) => Kind::Reject,
            What::Renew => Kind::Renew,
        };
        let same = |group: &&mut Batch| {
            let first = &group.jobs[0];
            kind != Kind::Reject
                && group.kind == kind
                && Arc::ptr_eq(&first.member, &job.member)
                && Arc::ptr_eq(&first.held.source, &job.held.source)
                && first.held.name == job.held.name
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.jobs.push(job),
            None => groups.push(Batch { kind, jobs: vec![job] }),
        }
    }
    groups
}

impl Batch {
    pub(super) fn write(&self, pipeline: &mut Pipeline) {
        let Job { member, held, .. } = &self.jobs[0];
        let source = &held.source;
        let keys = [source.stream.as_str(), &source.due, &source.notes];
        let copy = i32::from(source.replay);
        let consumer = member.consumer.as_str();
        let command = match self.kind {
            Kind::Plain => {
                let mut command = redis::cmd("XACK");
                command.arg(&source.stream).arg(&*held.name);
                args(&mut command, self.jobs.iter().map(|job| job.held.id));
                command
            }
            Kind::Checked => {
                let mut command = scripts::ACK.on(&keys);
                command.arg(&*held.name).arg(consumer).arg(copy);
                args(&mut command, self.jobs.iter().map(|job| job.held.id));
                command
            }
            Kind::Park => {
                let mut command = scripts::PARK.on(&keys);
                command.arg(&*held.name).arg(consumer);
                command.arg(member.client.keys.wake(member.group.as_str()).as_str());
                command.arg(format!("due {}", source.topic));
                for job in &self.jobs {
                    let What::Park { after, error } = &job.what else { continue };
                    let made = job.held.attempt - u32::from(error.is_none());
                    let error = error.as_ref().map(|error| format!("{error} "));
                    command.arg(job.held.id).arg(made).arg(millis(*after));
                    command.arg(error.unwrap_or_default()).arg(millis(job.held.since.elapsed()));
                }
                command
            }
            Kind::Reject => {
                let dead = member.client.keys.dead(&source.topic, member.group.as_str());
                let groups = member.client.keys.dead_groups(&source.topic);
                let mut command = scripts::REJECT.on(&[keys[0], keys[1], keys[2], &dead, &groups]);
                command.arg(&*held.name).arg(consumer).arg(copy).arg(member.group.as_str());
                command.arg(member.client.config.retention.dead_letters).arg(held.id).arg(held.attempt);
                if let What::Reject(rejection) = &self.jobs[0].what {
                    command.arg(rejection.reason.as_str());
                    command.arg(event_transport::headers::escape(&rejection.error).to_string());
                }
                command.arg(millis(held.since.elapsed()));
                command
            }
            Kind::Renew => {
                let mut command = scripts::RENEW.on(&keys[..1]);
                command.arg(&*held.name).arg(consumer);
                args(&mut command, self.jobs.iter().map(|job| job.held.id));
                command
            }
        };
        pipeline.add_command(command);
    }

    /// Returns whether this consumer owned each job's entry; an error when the command failed.
    fn outcomes(&self, value: Value) -> Result<Vec<bool>> {
        let value = reply(value)?;
        let count = self.jobs.len();
        let done = |value: i64, again: bool| value > 0 || (again && value < 0);
        Ok(match self.kind {
            Kind::Plain => vec![number(&value) as usize == count; count],
            Kind::Reject => {
                warn_of_full_letters(&self.jobs[0], number(&value));
                vec![done(number(&value), self.jobs[0].again)]
            }
            // An entry that an earlier try has parked no longer belongs to this consumer.
            Kind::Park => {
                parts(value).iter().zip(&self.jobs).map(|(v, job)| number(v) > 0 || job.again).collect()
            }
            Kind::Checked => {
                parts(value).iter().zip(&self.jobs).map(|(v, job)| done(number(v), job.again)).collect()
            }
            Kind::Renew => parts(value).iter().map(|v| number(v) > 0).collect(),
        })
    }

    /// The only job of a batch that was not sent.
    pub(super) fn into_job(mut self) -> Option<Job> {
        self.jobs.pop()
    }

    /// Finishes each of its jobs, and signals once that there may be room.
    fn finish(self, result: impl Fn(usize) -> Result<()>) {
        let Some(member) = self.jobs.first().map(|job| job.member.clone()) else { return };
        let settled = self.kind != Kind::Renew;
        let left = if settled { member.finish(self.jobs.iter().map(|job| job.token)) } else { usize::MAX };
        for (at, job) in self.jobs.into_iter().enumerate().rev() {
            job.finish(result(at));
        }
        if settled {
            member.has_room(left);
        }
    }
}

fn warn_of_full_letters(job: &Job, letters: i64) {
    let most = job.member.client.config.retention.dead_letters;
    if letters > 0 && letters as u64 >= most && (letters as u64).is_multiple_of(100) {
        tracing::warn!(
            group = %job.member.group, topic = %job.held.source.topic, dead_letters = letters,
            "the dead letters have reached their limit: the oldest are deleted; replay or drop some"
        );
    }
}

/// Reports each result to its caller; returns the jobs that must be tried again. `finished` is called with the number of
/// the others before their callers continue.
pub(super) fn conclude(
    connection: &Connection,
    mut groups: Vec<Batch>,
    replies: Result<Vec<Value>, Failure>,
    finished: impl FnOnce(usize),
) -> Vec<Job> {
    let mut again = Vec::new();
    if let Err(Failure::Unknown(_)) = &replies {
        let in_time = |job: &mut Job| {
            job.again =
                job.at.elapsed() < connection.server.answer_timeout && !connection.closed.is_cancelled();
            job.again
        };
        again.extend(groups.iter_mut().flat_map(|group| group.jobs.extract_if(.., in_time)));
    }
    finished(groups.iter().map(|group| group.jobs.len()).sum());
    let failed = |error: &Error, text: &'static str| {
        Err(Error::new(error.kind(), text).because(error.to_string()).during("settle"))
    };
    match replies {
        Ok(replies) => {
            for (group, value) in groups.into_iter().zip(replies) {
                let outcomes = group.outcomes(value);
                group.finish(|at| match &outcomes {
                    Ok(outcomes) if outcomes.get(at).copied().unwrap_or(false) => Ok(()),
                    Ok(_) => Err(lease_lost()),
                    // The group was moved or deleted.
                    Err(error) if error.kind() == ErrorKind::NotFound => Err(lease_lost()),
                    Err(error) => failed(error, "not settled"),
                });
            }
        }
        Err(Failure::Unknown(error)) => {
            let text = "the outcome of the settlement is unknown";
            groups.into_iter().for_each(|group| group.finish(|_| failed(&error, text)));
        }
        Err(Failure::Unsent(error)) => {
            groups.into_iter().for_each(|group| group.finish(|_| failed(&error, "not settled")));
        }
    }
    again
}

impl Job {
    /// Reports the result to its caller, and to the reader of a keyed group. A settled delivery is no longer held.
    fn finish(mut self, result: Result<()>) {
        let member = &self.member;
        if let What::Renew = self.what {
            if result.is_ok() {
                let safe = member.safe_from(self.at);
                if let Some(held) = lock(&member.table).get_mut(self.token as usize) {
                    held.safe_until = held.safe_until.max(safe);
                }
            }
        } else {
            let how = match (&result, &self.what) {
                (Err(_), _) => How::Lost,
                (Ok(()), What::Park { after, error }) => {
                    member.signals.due(&self.held.source.topic, *after);
                    How::Again(*after, self.held.attempt - u32::from(error.is_none()))
                }
                (Ok(()), _) => How::Done,
            };
            member.settled(self.held.item, how);
        }
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(result);
        }
    }
}
