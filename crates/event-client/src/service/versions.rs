//! Versions of an event that this member does not know: such events return to the group for a member that knows them.

use std::sync::Mutex;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use smol_str::SmolStr;
use tokio::time::Instant;

use crate::event::{Event, version_of};
use crate::subject::Subject;

/// The versions of one event that a handler can read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    name: &'static str,
    /// Newest first.
    known: Vec<u32>,
    /// Whether the group receives by a pattern, which also matches subjects that only look like versions.
    by_pattern: bool,
}

impl Versions {
    /// Returns the versions of `T`'s lineage.
    pub fn of<T: Event>() -> Self {
        let known = T::lineage().iter().map(|version| version.number).collect();
        Self { name: T::NAME, known, by_pattern: false }
    }

    /// Marks the versions of a group that receives every version by the event's pattern.
    pub(super) fn by_pattern(mut self) -> Self {
        self.by_pattern = true;
        self
    }

    /// Returns the version in `kind`, when it is a version of this event that the handler cannot read.
    pub fn unknown(&self, kind: &str) -> Option<u32> {
        version_of(kind, self.name).filter(|version| !self.known.contains(version))
    }

    /// Whether `subject` matches the group's pattern although it is not a version of this event.
    fn is_foreign(&self, subject: &str) -> bool {
        let token = subject.strip_prefix(self.name).and_then(|rest| rest.strip_prefix('.'));
        self.by_pattern
            && token.is_some_and(|token| !token.contains('.'))
            && version_of(subject, self.name).is_none()
    }
}

/// The decision about a message, made from its type alone.
#[derive(Debug, PartialEq)]
pub(super) enum Fate {
    /// The handler handles it.
    Handle,
    /// It does not belong to this event, although it matches the group's pattern: it is acknowledged.
    Foreign,
    /// It returns to the group and is delivered again after this time.
    Wait(Duration),
    /// It has waited too long; the text is the error of its dead letter.
    Overdue(SmolStr),
}

/// The first pause before a message is delivered again; later pauses grow with the time that it has waited.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a new member that knows the version receives a waiting message at the latest after this time.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A version that was not received for this time counts as new, so that a group that was stopped does not give up the
/// messages that it missed.
const FORGOTTEN: Duration = Duration::from_secs(12 * 3600);
/// The most unknown versions that are distinguished, because anyone can publish any number.
const MOST_MET: usize = 32;
/// The shortest interval between two log lines about one unknown version.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Records the unknown versions that were received, and decides how long their messages wait.
#[derive(Debug)]
pub(super) struct Patience {
    versions: Versions,
    within: Duration,
    /// The wall clock and tokio's clock at the start: together they give the time of day by a clock that is never
    /// set.
    began: (Timestamp, Instant),
    met: Mutex<Vec<Met>>,
}

/// An unknown version that is received repeatedly.
#[derive(Debug)]
struct Met {
    /// The version, and whether the store reports the time since which the message waits.
    version: (u32, bool),
    since: Instant,
    last: Instant,
    /// The time of the last log line, and the number of messages returned since then.
    said: Option<Instant>,
    count: u64,
}

/// The member that a log line names.
pub(super) struct Reader<'a> {
    pub(super) group: &'a str,
    pub(super) broadcast: bool,
}

impl Patience {
    pub(super) fn new(versions: Versions, within: Duration) -> Self {
        Self { versions, within, began: (Timestamp::now(), Instant::now()), met: Mutex::default() }
    }

    /// Decides about a message by its type `kind`, or by its subject when its envelope cannot be read, because a
    /// newer version may have another encoding. The message has waited since the group's store received it (`stored`)
    /// or since this member first received its version, whichever is later. `stored` is also `None` for a replayed
    /// message, because the time of the replay is not recorded.
    pub(super) fn judge(
        &self,
        reader: &Reader<'_>,
        subject: &Subject,
        kind: Option<&str>,
        stored: Option<Timestamp>,
    ) -> Fate {
        let (subject, name) = (subject.as_str(), self.versions.name);
        let Some(version) = self.versions.unknown(kind.unwrap_or(subject)) else {
            let of_others = kind.is_none_or(|kind| version_of(kind, name).is_none());
            return if of_others && self.versions.is_foreign(subject) { Fate::Foreign } else { Fate::Handle };
        };
        let now = Instant::now();
        let met_for = self.meet(reader, (version, stored.is_some()), now);
        let waited = stored.map_or(met_for, |stored| self.age(stored, now).min(met_for));
        if waited >= self.within && !reader.broadcast {
            return Fate::Overdue(smol_str::format_smolstr!(
                "`{name}.v{version}` waited {waited:.0?} for a member that can read it; this member reads {}; \
                 deploy a member that can read it, then replay the dead letter",
                self.known()
            ));
        }
        let pause = (waited / 2).clamp(FIRST_PAUSE, LONGEST_PAUSE).mul_f64(0.75 + fastrand::f64() / 2.0);
        // Not longer than the rest of the time that it may wait.
        Fate::Wait(pause.min(self.within - waited.min(self.within)).max(Duration::from_millis(1)))
    }

    /// Returns the time since the first of the recorded unknown versions was received; `None` when there is none.
    pub(super) fn met_for(&self) -> Option<Duration> {
        self.met.lock().expect("not poisoned").iter().map(|met| met.since.elapsed()).max()
    }

    fn age(&self, stored: Timestamp, now: Instant) -> Duration {
        let elapsed =
            SignedDuration::try_from(now.duration_since(self.began.1)).unwrap_or(SignedDuration::MAX);
        let since_began = self.began.0.duration_since(stored);
        Duration::try_from(since_began.saturating_add(elapsed)).unwrap_or_default()
    }

    /// Records that a version was received again; returns the time since it was first received. Replayed messages are
    /// recorded separately, otherwise they would already have waited long enough when they arrive.
    fn meet(&self, reader: &Reader<'_>, version: (u32, bool), now: Instant) -> Duration {
        metrics::counter!(
            "event_client_unknown_version_total", "group" => reader.group.to_owned(), "event" => self.versions.name
        )
        .increment(1);
        let mut all = self.met.lock().expect("not poisoned");
        all.retain(|met| now.duration_since(met.last) < FORGOTTEN);
        let at = all.iter().position(|met| met.version == version).unwrap_or_else(|| {
            // With this many versions, one line for each of them would flood the log.
            let said = (all.len() == MOST_MET).then_some(now);
            if said.is_some() {
                let oldest = (0..MOST_MET).min_by_key(|at| all[*at].last).expect("there are some");
                all.swap_remove(oldest);
            }
            all.push(Met { version, since: now, last: now, said, count: 0 });
            all.len() - 1
        });
        let met = &mut all[at];
        met.last = now;
        met.count += 1;
        let met_for = now.duration_since(met.since);
        if met.said.is_none_or(|said| now.duration_since(said) >= SAY_AGAIN) {
            met.said = Some(now);
            let count = std::mem::take(&mut met.count);
            self.say(reader, version.0, met_for, count);
        }
        met_for
    }

    fn say(&self, reader: &Reader<'_>, version: u32, met_for: Duration, count: u64) {
        let (group, event, known) = (reader.group, self.versions.name, self.known());
        let since = Timestamp::now().saturating_sub(met_for).unwrap_or_default();
        if reader.broadcast {
            tracing::warn!(
                group, event, version, known, %since, count,
                "this member does not know a version of its event and skips it"
            );
        } else {
            tracing::warn!(
                group, event, version, known, %since, count, dead_letter_after_s = self.within.as_secs(),
                "this member does not know a version of its event and returns it to the group for a member that does"
            );
        }
    }

    /// The known versions as text: `v2 v1`.
    fn known(&self) -> String {
        self.versions.known.iter().map(|version| format!("v{version}")).collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READER: Reader<'_> = Reader { group: "billing.orders.placed", broadcast: false };

    fn patience() -> Patience {
        let versions = Versions { name: "orders.placed", known: vec![2, 1], by_pattern: true };
        Patience::new(versions, Duration::from_secs(100))
    }

    fn judge(patience: &Patience, subject: &str, kind: &str, stored: Option<Timestamp>) -> Fate {
        let kind = Some(kind).filter(|kind| !kind.is_empty());
        patience.judge(&READER, &Subject::new(subject).unwrap(), kind, stored)
    }

    #[tokio::test(start_paused = true)]
    async fn only_versions_of_the_event_wait() {
        let patience = patience();
        for (subject, kind, want) in [
            ("orders.placed.v1", "orders.placed.v1", Fate::Handle),
            ("orders.placed.v2", "orders.lost.v1", Fate::Handle),
            ("orders.placed.v2", "orders.placed.v02", Fate::Handle),
            ("orders.placed.again", "orders.placed.again", Fate::Foreign),
            ("orders.placed.again", "", Fate::Foreign),
            ("orders.placed.v2", "", Fate::Handle),
            ("orders.placed.v0", "orders.placed.v0", Fate::Foreign),
            ("orders.placed.again", "orders.placed.v1", Fate::Handle),
            ("orders.placed.late.v1", "orders.placed.late.v1", Fate::Handle),
            ("replayed.v1", "orders.lost.v1", Fate::Handle),
        ] {
            assert_eq!(judge(&patience, subject, kind, None), want, "{subject} {kind}");
        }
        for kind in ["orders.placed.v3", ""] {
            assert!(matches!(judge(&patience, "orders.placed.v3", kind, None), Fate::Wait(_)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_and_ends_in_a_dead_letter() {
        let patience = patience();
        let stored = Some(Timestamp::now());
        let mut last = Duration::ZERO;
        let began = Instant::now();
        let error = loop {
            match judge(&patience, "orders.placed.v3", "orders.placed.v3", stored) {
                Fate::Wait(pause) => {
                    assert!(pause >= Duration::from_millis(1) && pause <= LONGEST_PAUSE.mul_f64(1.25));
                    last = last.max(pause);
                    tokio::time::advance(pause).await;
                }
                Fate::Overdue(error) => break error,
                other => panic!("{other:?}"),
            }
        };
        assert!(began.elapsed() >= Duration::from_secs(100) && last > Duration::from_secs(10));
        assert!(error.contains("orders.placed.v3") && error.contains("v2 v1"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_stored_long_ago_waits_from_when_it_is_met() {
        let patience = patience();
        let old = Some(Timestamp::now() - SignedDuration::from_hours(1000));
        let meet =
            |version: u32| judge(&patience, "orders.placed.v3", &format!("orders.placed.v{version}"), old);
        assert!(matches!(meet(3), Fate::Wait(_)));
        tokio::time::advance(Duration::from_secs(99)).await;
        assert!(matches!(meet(3), Fate::Wait(pause) if pause <= Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(matches!(meet(3), Fate::Overdue(_)));
        assert!(matches!(meet(4), Fate::Wait(_)), "each version waits independently");
        let replayed = judge(&patience, "orders.placed.v3", "orders.placed.v3", None);
        assert!(matches!(replayed, Fate::Wait(_)), "a replayed message waits again");
        // Anyone can publish any number: the recorded versions are bounded, and forgetting one only prolongs the
        // wait.
        for version in 5..1000 {
            assert!(matches!(meet(version), Fate::Wait(_)));
        }
        assert_eq!(patience.met.lock().unwrap().len(), MOST_MET);
    }

    #[tokio::test(start_paused = true)]
    async fn any_time_can_be_asked_for() {
        for (within, over) in [(Duration::ZERO, true), (Duration::MAX, false)] {
            let versions = Versions { name: "orders.placed", known: vec![1], by_pattern: true };
            let patience = Patience::new(versions, within);
            let future = Some(Timestamp::now() + SignedDuration::from_hours(1000));
            for stored in [None, future, Some(Timestamp::MIN), Some(Timestamp::MAX)] {
                let fate = judge(&patience, "orders.placed.v2", "orders.placed.v2", stored);
                assert_eq!(matches!(fate, Fate::Overdue(_)), over, "{within:?} {stored:?}");
            }
        }
    }
}
