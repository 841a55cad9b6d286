//! Messages, subscriptions and helper functions that the cases share.

use std::time::Duration;

use event_client::delivery::{Delivery, Reason, Rejection};
use event_client::message::Message;
use event_client::subject::{Group, Pattern, Subject};
use event_client::transport::{Mode, Start, Subscribe};

/// The subject that most cases use.
pub(crate) const SUBJECT: &str = "orders.placed.v1";

/// A short lease, for cases that let one run out.
pub(crate) const SHORT: Duration = Duration::from_secs(1);

pub(crate) fn subject(name: &str) -> Subject {
    Subject::new(name).expect("a valid subject")
}

pub(crate) fn pattern(pattern: &str) -> Pattern {
    Pattern::new(pattern).expect("a valid pattern")
}

pub(crate) fn group_name(name: &str) -> Group {
    Group::new(name).expect("a valid group")
}

/// A message with `text` as its payload.
pub(crate) fn message(text: impl Into<String>) -> Message {
    on(SUBJECT, text)
}

pub(crate) fn on(name: &str, text: impl Into<String>) -> Message {
    Message::new(subject(name), "text/plain", text.into())
}

pub(crate) fn keyed(key: &str, text: impl Into<String>) -> Message {
    let mut message = message(text);
    message.key = Some(key.into());
    message
}

pub(crate) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message().payload).into_owned()
}

pub(crate) fn key(delivery: &Delivery) -> String {
    delivery.message().key.as_ref().map(ToString::to_string).unwrap_or_default()
}

/// A group over the topic that most cases use, with room for `max_in_flight` deliveries.
pub(crate) fn group(name: &str, max_in_flight: usize) -> Subscribe {
    let mut spec = Subscribe::group(group_name(name), [pattern("orders.>")]);
    spec.max_in_flight = max_in_flight;
    spec
}

pub(crate) fn broadcast() -> Subscribe {
    Subscribe::broadcast([pattern("orders.>")])
}

/// Changes to a subscription, as methods that can be chained.
pub(crate) trait With: Sized {
    fn keyed(self) -> Self;
    fn lease(self, lease: Duration) -> Self;
    fn start(self, start: Start) -> Self;
    fn filters(self, patterns: &[&str]) -> Self;
}

impl With for Subscribe {
    fn keyed(mut self) -> Self {
        self.keyed = true;
        self
    }

    fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    fn filters(mut self, patterns: &[&str]) -> Self {
        self.filters = patterns.iter().map(|text| pattern(text)).collect();
        if let Mode::Group(_) = &self.mode {
            assert!(!self.filters.is_empty(), "a group without patterns");
        }
        self
    }
}

pub(crate) fn permanent(error: &str) -> Rejection {
    Rejection::new(Reason::Permanent, error)
}

/// Simulates a consumer that vanishes: its deliveries are never settled and their leases are not renewed.
pub(crate) fn vanish(subscription: event_client::subscription::Subscription, deliveries: Vec<Delivery>) {
    deliveries.into_iter().for_each(std::mem::forget);
    drop(subscription);
}
