//! The durable groups of a bus, found by name, by slot, or by the subject of a message.

use std::collections::HashMap;

use slab::Slab;

use super::group::GroupState;
use crate::subject::{Group, Subject};

#[derive(Debug, Default)]
pub(super) struct Groups {
    slots: Slab<GroupState>,
    names: HashMap<Group, usize>,
}

/// The slot of a durable group. It is valid as long as the group exists.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupRef {
    place: usize,
    uid: u64,
}

impl Groups {
    pub(super) fn insert(&mut self, group: GroupState) -> GroupRef {
        let (name, uid) = (group.name.clone(), group.uid);
        let place = self.slots.insert(group);
        self.names.insert(name, place);
        GroupRef { place, uid }
    }

    pub(super) fn remove(&mut self, name: &Group) -> Option<GroupState> {
        self.names.remove(name).map(|place| self.slots.remove(place))
    }

    pub(super) fn find(&self, name: &Group) -> Option<GroupRef> {
        let place = *self.names.get(name)?;
        Some(GroupRef { place, uid: self.slots[place].uid })
    }

    pub(super) fn get(&mut self, group: GroupRef) -> Option<&mut GroupState> {
        self.slots.get_mut(group.place).filter(|found| found.uid == group.uid)
    }

    pub(super) fn named(&self, name: &Group) -> Option<&GroupState> {
        self.names.get(name).map(|place| &self.slots[*place])
    }

    pub(super) fn named_mut(&mut self, name: &Group) -> Option<&mut GroupState> {
        self.names.get(name).map(|place| &mut self.slots[*place])
    }

    /// Returns the slots of the groups that receive `subject`.
    pub(super) fn matching(&self, subject: &Subject) -> Vec<usize> {
        self.slots.iter().filter(|(_, group)| group.matches(subject)).map(|(place, _)| place).collect()
    }

    /// Returns the group in a slot from [`Groups::matching`]. Call it only while no group has been removed.
    pub(super) fn slot(&mut self, place: usize) -> &mut GroupState {
        &mut self.slots[place]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &GroupState> {
        self.slots.iter().map(|(_, group)| group)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut GroupState> {
        self.slots.iter_mut().map(|(_, group)| group)
    }
}
