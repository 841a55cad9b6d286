//! Names of subjects, streams and consumers.

use smol_str::{SmolStr, format_smolstr};

use event_transport::subject::{Group, Pattern, Subject};

/// Names of all server objects of one namespace. No name contains a dot where NATS forbids it.
#[derive(Clone, Debug)]
pub(super) struct Names {
    ns: SmolStr,
    /// `shop.evt.`
    events: SmolStr,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Self {
        Self { ns: namespace.into(), events: format_smolstr!("{namespace}.evt.") }
    }

    pub(super) fn stream(&self, topic: &str) -> String {
        format!("EVT_{}_{topic}", self.ns)
    }

    pub(super) fn topic<'a>(&self, stream: &'a str) -> Option<&'a str> {
        stream.strip_prefix("EVT_")?.strip_prefix(self.ns.as_str())?.strip_prefix('_')
    }

    /// The stream of dead letters.
    pub(super) fn dead(&self) -> String {
        format!("DLQ_{}", self.ns)
    }

    /// The stream of the latest records of groups, attempts, connections and leaders.
    pub(super) fn state(&self) -> String {
        format!("SYS_{}", self.ns)
    }

    /// The stream of messages that are delayed, or replayed to one group.
    pub(super) fn work(&self) -> String {
        format!("WRK_{}", self.ns)
    }

    pub(super) fn event(&self, subject: &str) -> String {
        let mut name = String::with_capacity(self.events.len() + subject.len());
        name.push_str(&self.events);
        name.push_str(subject);
        name
    }

    /// Returns the event subject of a name made by [`Names::event`].
    pub(super) fn event_subject<'a>(&self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix(self.events.as_str())
    }

    pub(super) fn request(&self, subject: &Subject) -> String {
        format!("{}.rpc.{subject}", self.ns)
    }

    pub(super) fn dead_letter(&self, group: &Group, topic: &str) -> String {
        format!("{}.dlq.{group}.{topic}", self.ns)
    }

    pub(super) fn dead_letters_of(&self, group: &Group) -> String {
        format!("{}.dlq.{group}.*", self.ns)
    }

    /// Subject of a record in the state stream: its `kind` and the object that it describes.
    pub(super) fn record(&self, kind: &str, of: &str) -> String {
        format!("{}.sys.kv.{kind}.{of}", self.ns)
    }

    pub(super) fn delayed(&self, id: &str) -> String {
        format!("{}.sys.delay.{id}", self.ns)
    }

    pub(super) fn replayed(&self, group: &Group) -> String {
        format!("{}.sys.replay.{}", self.ns, token(group.as_str()))
    }

    /// Subject on which a connection answers requests for the status of its members.
    pub(super) fn presence(&self, connection: &str) -> String {
        format!("{}.sys.conn.{connection}", self.ns)
    }

    /// Subject of the notification that a keyed group has lost its leader.
    pub(super) fn led(&self, group: &Group) -> String {
        format!("{}.sys.led.{}", self.ns, token(group.as_str()))
    }

    /// Subject of messages from callers to a connection, or to `all`: a caller left, has room, or requests a status.
    pub(super) fn calls(&self, call: &str) -> String {
        format!("{}.sys.call.{call}", self.ns)
    }

    /// Subject of the notification of new topics, a new work stream or replayed letters.
    pub(super) fn news(&self) -> String {
        format!("{}.sys.news", self.ns)
    }
}

/// Converts a name to one token: dots become `=`, which no name of this library contains.
pub(super) fn token(name: &str) -> String {
    name.replace('.', "=")
}

/// Returns the server's name of a group's consumer. It is a new one each time the group is moved.
pub(super) fn consumer(group: &Group, epoch: u64) -> String {
    let name = token(group.as_str());
    if epoch == 0 { name } else { format!("{name}@{epoch}") }
}

/// Returns the narrowest filters of `topic` that cover all `patterns`; no filter means everything. `several`: servers
/// before 2.10 accept only one, and report no error. Filters of one consumer may not overlap.
pub(super) fn cover<'a>(
    patterns: impl IntoIterator<Item = &'a Pattern>,
    topic: &str,
    several: bool,
) -> Vec<String> {
    let mut left: Vec<&str> = Vec::new();
    for pattern in patterns {
        let pattern = pattern.as_str();
        if left.iter().any(|other| covers(other, pattern)) {
            continue;
        }
        left.retain(|other| !covers(pattern, other));
        left.push(pattern);
    }
    let within = |pattern: &&str| match pattern.split_once('.') {
        Some((_, rest)) => format!("{topic}.{rest}"),
        None => topic.to_owned(),
    };
    match left.as_slice() {
        [">"] => Vec::new(),
        [one] => vec![within(one)],
        many if several && many.iter().all(|pattern| !pattern.contains(['*', '>'])) => {
            many.iter().map(within).collect()
        }
        _ => Vec::new(),
    }
}

/// Returns whether `wide` matches everything that `narrow` matches.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('.'), narrow.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<_> = patterns.iter().map(|text| Pattern::new(text).unwrap()).collect();
        cover(&patterns, "orders", true)
    }

    #[test]
    fn one_filter_where_one_will_do() {
        assert_eq!(covered(&["orders.placed.v1"]), ["orders.placed.v1"]);
        assert_eq!(covered(&["orders.>", "orders.placed.v1", "orders.*.v1"]), ["orders.>"]);
        assert_eq!(covered(&["*.placed.>"]), ["orders.placed.>"]);
        assert_eq!(covered(&["*"]), ["orders"]);
        assert!(covered(&[">"]).is_empty());
        assert_eq!(covered(&["orders.a.v1", "orders.b.v1"]), ["orders.a.v1", "orders.b.v1"]);
        assert!(covered(&["orders.*.v1", "orders.a.>"]).is_empty(), "they overlap");
    }

    #[test]
    fn names_come_back() {
        let names = Names::new("shop");
        assert_eq!(names.topic(&names.stream("orders_eu")), Some("orders_eu"));
        assert_eq!(names.topic("EVT_shop-2_orders"), None);
        assert_eq!(names.event_subject(&names.event("orders.placed")), Some("orders.placed"));
        assert_eq!(consumer(&Group::new("billing.orders").unwrap(), 2), "billing=orders@2");
    }
}
