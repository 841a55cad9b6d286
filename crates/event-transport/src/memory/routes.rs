//! A cache of the groups and listeners that receive a subject.

use std::collections::HashMap;

use super::groups::Groups;
use super::listeners::Listeners;
use crate::subject::Subject;

#[derive(Debug, Default)]
pub(super) struct Routes(HashMap<Subject, Route>);

#[derive(Debug, Default)]
pub(super) struct Route {
    /// Slots for [`Groups::slot`].
    pub(super) groups: Vec<usize>,
    pub(super) listeners: Vec<u64>,
}

impl Routes {
    /// Largest number of cached subjects. Publishers may use any number of subjects, but the cache must stay bounded.
    const MOST: usize = 4096;

    pub(super) fn find(&mut self, subject: &Subject, groups: &Groups, listeners: &Listeners) -> &Route {
        if self.0.len() >= Self::MOST && !self.0.contains_key(subject) {
            self.0.clear();
        }
        // `entry` would clone the subject even when it is cached.
        if !self.0.contains_key(subject) {
            let route = Route { groups: groups.matching(subject), listeners: listeners.matching(subject) };
            self.0.insert(subject.clone(), route);
        }
        &self.0[subject]
    }

    /// Clears the cache because groups or listeners changed.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}
