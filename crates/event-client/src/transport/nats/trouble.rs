//! An interruption: the subscription's health says so, and the log when it begins and when it is over.

use crate::subject::Group;
use crate::subscription::{Feed, Health};

/// Whether something that fetches is interrupted.
#[derive(Debug, Default)]
pub(super) struct Trouble(bool);

impl Trouble {
    pub(super) fn is_on(&self) -> bool {
        self.0
    }

    /// There is some; answers whether it is new, and so to be logged.
    pub(super) fn begins(&mut self, feed: &Feed, what: &str) -> bool {
        feed.report(Health::Rebuilding(what.to_owned()));
        !std::mem::replace(&mut self.0, true)
    }

    /// There is none; answers whether there was, and so its end to be logged.
    pub(super) fn ends(&mut self, feed: &Feed) -> bool {
        feed.report(Health::Live);
        std::mem::replace(&mut self.0, false)
    }

    /// [`begins`](Self::begins) for a member of this group.
    pub(super) fn begins_for(&mut self, group: &Group, feed: &Feed, what: &str) {
        if self.begins(feed, what) {
            tracing::warn!(%group, error = what, "fetching is interrupted; it is tried again");
        }
    }

    /// [`ends`](Self::ends) for a member of this group.
    pub(super) fn ends_for(&mut self, group: &Group, feed: &Feed) {
        if self.ends(feed) {
            tracing::info!(%group, "fetching goes on");
        }
    }
}
