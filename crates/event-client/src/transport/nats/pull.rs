//! Open pulls of one subscription: never more asked for than there is room, silence noticed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{StatusCode, Subject as NatsSubject};
use tokio::time::Instant;

use super::member::Source;
use super::outbound::Outbound;

/// How long a pull waits at the server. Short, for an open pull cannot be taken back: whoever stops waits for its end,
/// or what the server has just sent would be lost until its lease ends. Its end is also the sign of life that is
/// watched for.
pub(super) const EXPIRES: Duration = Duration::from_secs(1);
/// A pull for more goes out as soon as one part of so many of the room is free: the server must not run dry meanwhile.
const AGAIN: usize = 4;
/// Silence after which a pull is given up.
const SILENCE: Duration = Duration::from_secs(3);

/// How much of this room is worth a pull of its own.
pub(super) fn part(room: usize) -> usize {
    room.div_ceil(AGAIN)
}

/// The pulls of a subscription, over all its consumers; one inbox takes everything.
pub(super) struct Pulls {
    outbound: Arc<Outbound>,
    inbox: String,
    list: Vec<Pull>,
    next: u64,
}

/// The open pulls of one consumer.
pub(super) struct Pull {
    pub(super) source: Arc<Source>,
    /// Number and what is left of each, the oldest first.
    open: VecDeque<(u64, usize)>,
    heard: Instant,
    /// Not before then.
    after: Instant,
    failures: u32,
}

/// The meaning of a status message of the server about a pull.
pub(super) enum PullStatus {
    /// The pull still waits, or it ended as expected.
    Alive,
    /// The pull failed, for this reason.
    Failed(String),
    /// The message is about no open pull, or needs no reaction.
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

    /// A consumer is no longer there.
    pub(super) fn remove(&mut self, source: &Arc<Source>) {
        self.list.retain(|pull| !Arc::ptr_eq(&pull.source, source));
    }

    /// Whether the server may still send something.
    pub(super) fn any_open(&self) -> bool {
        self.list.iter().any(|pull| !pull.open.is_empty())
    }

    /// The server has forgotten all of them.
    pub(super) fn forget(&mut self) {
        self.list.iter_mut().for_each(|pull| pull.open.clear());
    }

    /// The source that a message came from; its oldest pull got it.
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

    /// How many messages the server was asked for.
    pub(super) fn outstanding(&self) -> usize {
        self.list.iter().map(Pull::outstanding).sum()
    }

    /// Opens pulls for `free` messages; when to look again at the latest, and whether one was not answered.
    ///
    /// Several consumers share the room, but each may have one message on its way: what is too much waits here.
    pub(super) fn top_up(&mut self, free: usize) -> (Option<Instant>, bool) {
        self.top_up_by(free, free)
    }

    /// The same, for no less than a part of `room` where something was asked for already.
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

    /// Opens one pull.
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

    /// Reads a status message.
    pub(super) fn status(&mut self, message: &async_nats::Message, status: StatusCode) -> PullStatus {
        let Some((at, request)) = self.request_of(message) else { return PullStatus::Ignored };
        let Some(pull) = self.list.get_mut(at) else { return PullStatus::Ignored };
        pull.heard = Instant::now();
        if status.as_u16() == 100 {
            return PullStatus::Alive;
        }
        pull.open.retain(|(number, _)| *number != request);
        let text = message.description.as_deref().unwrap_or("JetStream does not answer just now");
        match status.as_u16() {
            404 | 408 => PullStatus::Alive,
            _ => {
                pull.back_off();
                // A full consumer goes on as soon as something is settled.
                if text.contains("MaxAckPending") || text.contains("Batch Completed") {
                    PullStatus::Ignored
                } else {
                    PullStatus::Failed(text.to_owned())
                }
            }
        }
    }

    /// The consumer and number of the pull that a status is about.
    fn request_of(&self, message: &async_nats::Message) -> Option<(usize, u64)> {
        let rest = message.subject.as_str().strip_prefix(self.inbox.as_str())?;
        let number = rest.strip_prefix('.')?.parse().ok()?;
        let at = self.list.iter().position(|pull| pull.open.iter().any(|(open, _)| *open == number))?;
        Some((at, number))
    }
}
