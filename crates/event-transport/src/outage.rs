//! An outage of a subscription: its health reports it, and the log has one line at its start and one at its end.

use crate::subject::Group;
use crate::subscription::{Feed, Health};

/// Whether fetching is interrupted.
#[derive(Debug, Default)]
pub struct Outage(bool);

impl Outage {
    /// Whether fetching is interrupted at present.
    pub fn is_on(&self) -> bool {
        self.0
    }

    /// Reports the outage; returns whether it begins now, and is to be logged.
    pub fn begins(&mut self, feed: &Feed, what: &str) -> bool {
        feed.report(Health::Rebuilding(what.to_owned()));
        !std::mem::replace(&mut self.0, true)
    }

    /// Reports that fetching works; returns whether an outage ends now, which is to be logged.
    pub fn ends(&mut self, feed: &Feed) -> bool {
        feed.report(Health::Live);
        std::mem::replace(&mut self.0, false)
    }

    /// [`begins`](Self::begins) for a member of this group.
    pub fn begins_for(&mut self, group: &Group, feed: &Feed, what: &str) {
        if self.begins(feed, what) {
            tracing::warn!(%group, error = what, "fetching is interrupted and will be retried");
        }
    }

    /// [`ends`](Self::ends) for a member of this group.
    pub fn ends_for(&mut self, group: &Group, feed: &Feed) {
        if self.ends(feed) {
            tracing::info!(%group, "fetching has resumed");
        }
    }
}
