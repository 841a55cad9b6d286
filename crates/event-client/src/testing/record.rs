//! The recorded work of a service under test, and the methods that read it.

use std::fmt;
use std::ops::Deref;
use std::sync::{Mutex, MutexGuard};

use smol_str::SmolStr;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::delivery::Settlement;
use crate::envelope::{Envelope, Meta};
use crate::event::{Event, version_of};
use crate::message::{Message, MessageId};
use crate::service::{Identity, Observer, Outcome, OutcomeKind};
use crate::subject::{Pattern, Subject};
use event_transport::sync::lock;

/// Everything recorded since the start.
#[derive(Default)]
pub(super) struct Records {
    seen: Mutex<Seen>,
    changed: Notify,
}

#[derive(Default)]
struct Seen {
    emitted: Vec<Message>,
    attempts: Vec<(SmolStr, Attempted)>,
    /// The time at which the last delayed message becomes due.
    due: Option<Instant>,
    /// The filters of the broadcast handlers, the number of messages that they should receive, and the number that
    /// they settled.
    broadcasts: Vec<Vec<Pattern>>,
    sent: u64,
    heard: u64,
}

impl Records {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// Resolves at the next settlement or publish after this call.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn published(&self, message: Option<Message>, subject: &Subject, due: Option<Instant>) {
        let mut seen = self.seen();
        let listening = |filters: &&Vec<Pattern>| filters.iter().any(|filter| filter.matches(subject));
        seen.sent += seen.broadcasts.iter().filter(listening).count() as u64;
        seen.due = seen.due.max(due);
        seen.emitted.extend(message);
        drop(seen);
        self.changed.notify_waiters();
    }

    pub(super) fn listens(&self, filters: Vec<Pattern>) {
        self.seen().broadcasts.push(filters);
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.seen().due
    }

    pub(super) fn unheard(&self) -> u64 {
        let seen = self.seen();
        seen.sent.saturating_sub(seen.heard)
    }

    pub(super) fn handled(&self, group: &str) -> Handled {
        let attempts =
            self.seen().attempts.iter().filter(|(of, _)| of == group).map(|(_, at)| at.clone()).collect();
        Handled { attempts }
    }

    pub(super) fn emitted<E: Event>(&self) -> Emitted<E> {
        let subjects = E::subjects().unwrap_or_else(|error| panic!("{error}"));
        let read = |message: &Message| {
            let decoded = Envelope::read(message).and_then(|envelope| {
                let version = version_of(&envelope.meta.event_type, E::NAME).unwrap_or(E::VERSION);
                Ok((E::decode(version, &envelope)?, envelope.meta))
            });
            decoded
                .unwrap_or_else(|error| panic!("an emitted `{}` does not decode: {error}", message.subject))
        };
        let seen = self.seen();
        let of_type = |message: &&Message| subjects.contains(&message.subject);
        let (events, metas) = seen.emitted.iter().filter(of_type).map(read).unzip();
        let others = seen.emitted.iter().filter(|message| !of_type(message));
        Emitted { events, metas, others: others.map(|message| message.subject.clone()).collect() }
    }
}

impl Observer for Records {
    fn settled(&self, handler: &Identity, message: &Message, attempt: u32, settlement: Settlement) {
        let outcome = match settlement {
            Settlement::Ack => Outcome::Ack,
            Settlement::Retry { after, error } => Outcome::Retry { after: Some(after), error },
            Settlement::Reject(rejection) => {
                Outcome::Reject { reason: rejection.reason, error: rejection.error }
            }
            Settlement::Release | Settlement::Defer { .. } => Outcome::Release,
        };
        let mut seen = self.seen();
        seen.heard += u64::from(handler.broadcast);
        let attempted = Attempted { id: message.id.clone(), attempt, outcome, at: Instant::now() };
        seen.attempts.push((handler.group.clone(), attempted));
        drop(seen);
        self.changed.notify_waiters();
    }
}

/// One attempt of a handler to handle a message.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Attempted {
    /// The id of the message.
    pub id: MessageId,
    /// The number of the attempt, from 1.
    pub attempt: u32,
    /// The settlement, with the retry policy applied: the last failed attempt is a `Reject`.
    pub outcome: Outcome,
    /// The time of the settlement, on tokio's clock.
    pub at: Instant,
}

/// The attempts of a handler, in the order of their settlement.
#[derive(Clone, Debug)]
pub struct Handled {
    attempts: Vec<Attempted>,
}

impl Handled {
    /// Returns the kind of each settlement: `assert_eq!(handled.outcomes(), [Retry, Ack])`.
    pub fn outcomes(&self) -> Vec<OutcomeKind> {
        self.attempts.iter().map(|attempted| attempted.outcome.kind()).collect()
    }

    /// Returns the attempts with all details.
    pub fn attempts(&self) -> &[Attempted] {
        &self.attempts
    }

    /// Returns only the attempts for one message.
    #[must_use]
    pub fn of(&self, id: &MessageId) -> Self {
        Self { attempts: self.attempts.iter().filter(|attempted| attempted.id == *id).cloned().collect() }
    }

    /// Returns the error texts of all failures, in order.
    pub fn errors(&self) -> Vec<&str> {
        self.attempts
            .iter()
            .filter_map(|attempted| match &attempted.outcome {
                Outcome::Retry { error, .. } | Outcome::Reject { error, .. } => Some(error.as_str()),
                Outcome::Ack | Outcome::Release => None,
            })
            .collect()
    }
}

/// The events of one type that a service published; dereferences to a slice of them.
pub struct Emitted<E> {
    events: Vec<E>,
    metas: Vec<Meta>,
    others: Vec<Subject>,
}

impl<E: Event> Emitted<E> {
    /// Returns the only event.
    ///
    /// # Panics
    /// When there is none or more than one; the message lists the emitted events.
    #[track_caller]
    pub fn once(mut self) -> E {
        assert!(self.events.len() == 1, "expected one `{}` to be emitted: {self:?}", E::SUBJECT);
        self.events.remove(0)
    }

    /// Asserts that there is no event.
    ///
    /// # Panics
    /// When there is one.
    #[track_caller]
    pub fn never(self) {
        assert!(self.events.is_empty(), "expected no `{}` to be emitted: {self:?}", E::SUBJECT);
    }

    /// Returns the events without their attributes.
    pub fn into_vec(self) -> Vec<E> {
        self.events
    }

    /// Returns the attributes of each event, in the same order: ids, correlation, cause, trace.
    pub fn metas(&self) -> &[Meta] {
        &self.metas
    }
}

impl<E> Deref for Emitted<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        &self.events
    }
}

impl<E: Event> fmt::Debug for Emitted<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Events need not implement Debug; their JSON shows the same values.
        let shown: Vec<_> =
            self.events.iter().filter_map(|event| serde_json::to_string(event).ok()).collect();
        write!(f, "{} events [{}]; other subjects: {:?}", self.events.len(), shown.join(", "), self.others)
    }
}
