//! The open pulls of one subscription: requests no more messages than there is room for, and detects a silent server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{StatusCode, Subject as NatsSubject};
use tokio::time::Instant;

use super::outbound::Outbound;
use super::source::Source;

/// Time that a pull waits at the server. It is short because an open pull cannot be cancelled: a member that stops
/// waits for its end, or a message that the server has just sent would be lost until its lease ends. The end of a
/// pull also proves that the server is alive.
pub(super) const EXPIRES: Duration = Duration::from_secs(1);
/// Another pull is sent when one part out of this number of parts of the room is free, so that a pull is always open.
const AGAIN: usize = 4;
/// Time without a message after which a pull is considered lost.
const SILENCE: Duration = Duration::from_secs(3);

/// Returns the smallest part of this room for which another pull is sent.
pub(super) fn part(room: usize) -> usize {
    room.div_ceil(AGAIN)
}

/// The pulls of a subscription on all its consumers. One inbox receives all messages.
pub(super) struct Pulls {
    outbound: Arc<Outbound>,
    inbox: String,
    list: Vec<Pull>,
    next: u64,
}

/// The open pulls of one consumer.
pub(super) struct Pull {
    pub(super) source: Arc<Source>,
    /// Number of each pull and its remaining messages, the oldest first.
    open: VecDeque<(u64, usize)>,
    heard: Instant,
    /// No pull is sent before this time.
    after: Instant,
    failures: u32,
}

/// The meaning of a status message of the server about a pull.
pub(super) enum PullStatus {
    /// The pull still waits, or it ended as expected.
    Alive,
    /// The pull failed, for this reason.
    Failed(String),
    /// The message belongs to no open pull, or needs no reaction.
    Ignored,
}

impl Pull {
    fn outstanding(&self) -> usize {
        self.open.iter().map(|(_, left)| left).sum()
    }

    fn back_off(&mut self) {
        self.failures = (self.failures + 1).min(6);
        let most = 50_u64 << self.failures;
        self.after = Instant::now() + Duration::from_millis(fastrand::u64(most / 2..=most));
    }
}

impl Pulls {
    pub(super) fn new(outbound: Arc<Outbound>, inbox: String) -> Self {
        Self { outbound, inbox, list: Vec::new(), next: 0 }
    }

    pub(super) fn add(&mut self, source: Source) {
        let now = Instant::now();
        let source = Arc::new(source);
        self.list.push(Pull { source, open: VecDeque::new(), heard: now, after: now, failures: 0 });
    }

    pub(super) fn sources(&self) -> impl Iterator<Item = &Arc<Source>> {
        self.list.iter().map(|pull| &pull.source)
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// Removes a consumer that no longer exists.
    pub(super) fn remove(&mut self, source: &Arc<Source>) {
        self.list.retain(|pull| !Arc::ptr_eq(&pull.source, source));
    }

    /// Returns whether the server may still send messages.
    pub(super) fn any_open(&self) -> bool {
        self.list.iter().any(|pull| !pull.open.is_empty())
    }

    /// Drops all pulls, because the server has dropped them.
    pub(super) fn forget(&mut self) {
        self.list.iter_mut().for_each(|pull| pull.open.clear());
    }

    /// Returns the source of a received message, and counts the message for the source's oldest pull.
    pub(super) fn received(&mut self, stream: &str, consumer: &str, now: Instant) -> Option<Arc<Source>> {
        let pull = self
            .list
            .iter_mut()
            .find(|pull| pull.source.consumer == consumer && pull.source.stream == stream)?;
        pull.heard = now;
        pull.failures = 0;
        if let Some((_, left)) = pull.open.front_mut() {
            *left -= 1;
            if *left == 0 {
                pull.open.pop_front();
            }
        }
        Some(pull.source.clone())
    }

    /// Returns the number of messages that the server may still send.
    pub(super) fn outstanding(&self) -> usize {
        self.list.iter().map(Pull::outstanding).sum()
    }

    /// Sends pulls for `free` messages. Returns the latest time of the next check, and whether a pull was not
    /// answered.
    ///
    /// Several consumers share the room, but each may have one message in transit: surplus messages wait at the
    /// member.
    pub(super) fn top_up(&mut self, free: usize) -> (Option<Instant>, bool) {
        self.top_up_by(free, free)
    }

    /// Like [`Pulls::top_up`], but sends another pull to a consumer only for at least a part of `room`.
    pub(super) fn top_up_by(&mut self, free: usize, room: usize) -> (Option<Instant>, bool) {
        let now = Instant::now();
        let (mut wake, mut silent) = (None, false);
        let mut look = |at: Instant| wake = Some(wake.map_or(at, |wake: Instant| wake.min(at)));
        if free == 0 {
            return (None, false);
        }
        let share_of = |room: usize| (room / self.list.len().max(1)).max(1);
        let (share, least) = (share_of(free), part(share_of(room)));
        for at in 0..self.list.len() {
            let pull = &mut self.list[at];
            if !pull.open.is_empty() && now >= pull.heard + SILENCE {
                pull.open.clear();
                pull.back_off();
                silent = true;
            }
            if pull.after > now {
                look(pull.after);
                continue;
            }
            let outstanding = pull.outstanding();
            let wanted = share.saturating_sub(outstanding);
            if outstanding == 0 || (wanted > 0 && wanted >= least) {
                self.open(at, wanted);
            }
            look(self.list[at].heard + SILENCE);
        }
        (wake, silent)
    }

    /// Sends one pull.
    fn open(&mut self, at: usize, count: usize) {
        self.next += 1;
        let pull = &mut self.list[at];
        if pull.open.is_empty() {
            pull.heard = Instant::now();
        }
        pull.open.push_back((self.next, count));
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", pull.source.stream, pull.source.consumer);
        let body = format!("{{\"batch\":{count},\"expires\":{}}}", EXPIRES.as_nanos());
        let reply = NatsSubject::from(format!("{}.{}", self.inbox, self.next));
        self.outbound.send_bare(NatsSubject::from(subject), Some(reply), body.into());
    }

    /// Processes a status message.
    pub(super) fn status(&mut self, message: &async_nats::Message, status: StatusCode) -> PullStatus {
        let Some((at, request)) = self.request_of(message) else { return PullStatus::Ignored };
        let Some(pull) = self.list.get_mut(at) else { return PullStatus::Ignored };
        pull.heard = Instant::now();
        if status.as_u16() == 100 {
            return PullStatus::Alive;
        }
        pull.open.retain(|(number, _)| *number != request);
        let text = message.description.as_deref().unwrap_or("JetStream does not answer at the moment");
        match status.as_u16() {
            404 | 408 => PullStatus::Alive,
            _ => {
                pull.back_off();
                // A consumer at its limit continues as soon as a message is settled.
                if text.contains("MaxAckPending") || text.contains("Batch Completed") {
                    PullStatus::Ignored
                } else {
                    PullStatus::Failed(text.to_owned())
                }
            }
        }
    }

    /// Returns the consumer and the number of the pull that a status belongs to.
    fn request_of(&self, message: &async_nats::Message) -> Option<(usize, u64)> {
        let rest = message.subject.as_str().strip_prefix(self.inbox.as_str())?;
        let number = rest.strip_prefix('.')?.parse().ok()?;
        let at = self.list.iter().position(|pull| pull.open.iter().any(|(open, _)| *open == number))?;
        Some((at, number))
    }
}
