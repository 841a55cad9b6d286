//! Order per key within one member: which keys have a message out, and what waits behind it.

#![allow(dead_code, reason = "each broker folder may be compiled out")]

use std::collections::{HashMap, VecDeque};

use smol_str::SmolStr;

/// Items behind the one of their key that is out. Keys with nothing out need no memory.
#[derive(Debug)]
pub(crate) struct KeyQueue<T> {
    lanes: HashMap<SmolStr, VecDeque<T>>,
    waiting: usize,
}

impl<T> Default for KeyQueue<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), waiting: 0 }
    }
}

impl<T> KeyQueue<T> {
    /// Gives `item` back when its key is free, and from then on the key is its own; else it waits its turn.
    pub(crate) fn offer(&mut self, key: &SmolStr, item: T) -> Option<T> {
        match self.lanes.get_mut(key) {
            Some(lane) => {
                lane.push_back(item);
                self.waiting += 1;
                None
            }
            None => {
                self.lanes.insert(key.clone(), VecDeque::new());
                Some(item)
            }
        }
    }

    /// The item of `key` that was out is settled for good: the next one, or the key is free.
    pub(crate) fn finish(&mut self, key: &str) -> Option<T> {
        match self.lanes.get_mut(key)?.pop_front() {
            Some(next) => {
                self.waiting -= 1;
                Some(next)
            }
            None => {
                self.lanes.remove(key);
                None
            }
        }
    }

    /// Whether `key` has an item out.
    pub(crate) fn is_busy(&self, key: &str) -> bool {
        self.lanes.contains_key(key)
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// What waits, in order per key.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.values().flatten()
    }

    /// Takes everything that waits, in order per key; all keys are free.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.waiting = 0;
        self.lanes.drain().flat_map(|(_, lane)| lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_a_key_at_a_time_in_order() {
        let (a, b) = (SmolStr::new("a"), SmolStr::new("b"));
        let mut lanes = KeyQueue::default();
        assert_eq!(lanes.offer(&a, 1), Some(1));
        assert_eq!(lanes.offer(&a, 2), None);
        assert_eq!(lanes.offer(&b, 3), Some(3));
        assert_eq!(lanes.offer(&a, 4), None);
        assert_eq!((lanes.waiting(), lanes.is_busy("a")), (2, true));
        assert_eq!(lanes.finish("a"), Some(2));
        assert_eq!(lanes.finish("b"), None);
        assert!(!lanes.is_busy("b"));
        assert_eq!(lanes.drain().collect::<Vec<_>>(), [4]);
        assert!(!lanes.is_busy("a"));
        assert_eq!(lanes.finish("a"), None);
    }
}
