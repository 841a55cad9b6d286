//! Names of exchanges and queues: each starts with the namespace.

use std::time::Duration;

use lapin::types::ShortString;

use event_transport::subject::{Group, Pattern};

/// The names of one namespace.
#[derive(Clone, Debug)]
pub(super) struct Names(String);

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self(namespace.to_owned())
    }

    fn of(&self, kind: &str, name: &str) -> ShortString {
        format!("{}.{kind}.{name}", self.0).into()
    }

    fn one(&self, kind: &str) -> ShortString {
        format!("{}.{kind}", self.0).into()
    }

    /// Topic exchange of all events; the routing key is the subject.
    pub(super) fn events(&self) -> ShortString {
        self.one("evt")
    }

    /// Fanout exchange that reaches every connected member.
    pub(super) fn sys(&self) -> ShortString {
        self.one("sys")
    }

    /// Queue without messages; its consumers are the connected members.
    pub(super) fn roster(&self) -> ShortString {
        self.one("roster")
    }

    /// Queue with one message: the list of groups.
    pub(super) fn registry(&self) -> ShortString {
        self.one("registry")
    }

    /// Queue that drops every message; its binding shows that the exchange of events still has its bindings.
    pub(super) fn mark(&self) -> ShortString {
        self.one("mark")
    }

    /// Exclusive queue whose existence is a lock.
    pub(super) fn lock(&self, what: &str) -> ShortString {
        self.of("lock", what)
    }

    /// A group's messages.
    pub(super) fn group(&self, group: &Group) -> ShortString {
        self.of("group", group.as_str())
    }

    /// A group's dead letters.
    pub(super) fn dead(&self, group: &str) -> ShortString {
        self.of("dlq", group)
    }

    /// Attempts that the owner of a keyed group has counted.
    pub(super) fn journal(&self, group: &Group) -> ShortString {
        self.of("journal", group.as_str())
    }

    /// Retries of a group that wait `tier`.
    pub(super) fn retry(&self, group: &Group, tier: Duration) -> ShortString {
        format!("{}.retry.{group}.{}", self.0, tier.as_millis()).into()
    }

    /// Delayed publishes that wait `tier`.
    pub(super) fn delay(&self, tier: Duration) -> ShortString {
        format!("{}.delay.{}", self.0, tier.as_millis()).into()
    }

    /// Delayed publishes that are nearly due.
    pub(super) fn due(&self) -> ShortString {
        self.one("due")
    }

    /// Requests for a subject.
    pub(super) fn requests(&self, subject: &str) -> ShortString {
        self.of("rpc", subject)
    }

    /// Messages to one connection.
    pub(super) fn inbox(&self, id: &str) -> ShortString {
        self.of("inbox", id)
    }

    /// One broadcast subscription.
    pub(super) fn broadcast(&self, id: &str) -> ShortString {
        self.of("broadcast", id)
    }
}

/// A pattern as a binding key of a topic exchange: `>` matches one or more tokens, but `#` would also match none.
pub(super) fn binding(pattern: &Pattern) -> ShortString {
    match pattern.as_str().strip_suffix('>') {
        Some(start) => format!("{start}*.#").into(),
        None => pattern.as_str().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_translated_and_names_fit() {
        for (pattern, want) in [("orders.>", "orders.*.#"), (">", "*.#"), ("a.*.c", "a.*.c")] {
            assert_eq!(binding(&Pattern::new(pattern).unwrap()).as_str(), want);
        }
        let group = Group::new("g".repeat(200)).unwrap();
        let names = Names::new(&"n".repeat(24));
        assert!(names.retry(&group, Duration::from_millis(1 << 30)).as_str().len() <= 255);
    }
}
