//! Order per key within one member: the keys with a message in flight, and the messages that wait for them.

use std::collections::{HashMap, VecDeque};

use smol_str::SmolStr;

/// Items that wait until the item of the same key that is in flight is settled. Idle keys need no memory.
#[derive(Debug)]
pub struct KeyQueue<T> {
    lanes: HashMap<SmolStr, VecDeque<T>>,
    waiting: usize,
}

impl<T> Default for KeyQueue<T> {
    fn default() -> Self {
        Self { lanes: HashMap::new(), waiting: 0 }
    }
}

impl<T> KeyQueue<T> {
    /// If the key is idle, returns `item`, which is then in flight; otherwise queues it behind the others of its key.
    pub fn offer(&mut self, key: &SmolStr, item: T) -> Option<T> {
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

    /// To be called when the item of `key` in flight is settled for good. Returns the next item, which is then in
    /// flight; `None` if none waits, and then the key is idle.
    pub fn finish(&mut self, key: &str) -> Option<T> {
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

    /// Whether `key` has an item in flight.
    pub fn is_busy(&self, key: &str) -> bool {
        self.lanes.contains_key(key)
    }

    /// The number of waiting items.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The waiting items, in order per key.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.values().flatten()
    }

    /// Removes and returns the waiting items, in order per key; then all keys are idle.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
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
