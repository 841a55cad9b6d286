//! The keys whose later messages stay in the log until the earlier ones are settled.
//!
//! A message of a busy key that has no room in memory is postponed: only its position is stored, in a row of `lease`
//! that belongs to the member [`POSTPONED`](super::schema::POSTPONED) of its group. The cursor moves on, so the messages
//! of other keys are found. Memory has one entry per row, and a row has the positions of up to [`ROW`] messages.

use std::collections::{HashMap, VecDeque};

use smol_str::SmolStr;

/// The highest number of keys with postponed messages. Messages of further keys get rows of their own.
const KEYS: usize = 4096;
/// The highest number of positions in one row.
pub(super) const ROW: usize = 4096;

/// The keys with postponed messages.
#[derive(Debug, Default)]
pub(super) struct Postponed {
    keys: HashMap<SmolStr, Positions>,
    /// Keys whose next messages may be claimed.
    due: VecDeque<SmolStr>,
    /// Keys whose earlier messages have rows of their own.
    blocked: Vec<SmolStr>,
    /// Whether the rows in the file were read.
    pub(super) loaded: bool,
}

/// The rows of one key, oldest first.
#[derive(Debug, Default)]
struct Positions {
    rows: VecDeque<Row>,
    /// Whether it is in `due` or `blocked`.
    listed: bool,
}

/// A row with positions of one key.
#[derive(Debug)]
struct Row {
    id: i64,
    /// One after its last position.
    end: i64,
    count: usize,
}

impl Postponed {
    /// Whether messages of `key` are postponed.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// The keys with postponed messages.
    pub(super) fn keys(&self) -> Vec<SmolStr> {
        self.keys.keys().cloned().collect()
    }

    /// Whether messages of `more` further keys can be postponed.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.keys.len() + more <= KEYS
    }

    /// The row to which more positions of `key` can be added, and one after its last position.
    pub(super) fn last_row(&self, key: &str) -> Option<(i64, i64)> {
        self.keys.get(key)?.rows.back().filter(|row| row.count < ROW).map(|row| (row.id, row.end))
    }

    /// Remembers that the row `id` has `count` more positions of `key`, the last of them before `end`.
    pub(super) fn add(&mut self, key: SmolStr, id: i64, end: i64, count: usize) {
        let rows = &mut self.keys.entry(key).or_default().rows;
        match rows.back_mut().filter(|row| row.id == id) {
            Some(row) => (row.end, row.count) = (end, row.count + count),
            None => rows.push_back(Row { id, end, count }),
        }
    }

    /// The next messages of `key` may be claimed.
    pub(super) fn set_due(&mut self, key: &str) {
        let Some((known, positions)) = self.keys.get_key_value(key) else { return };
        if !positions.listed {
            self.due.push_back(known.clone());
            self.list(key);
        }
    }

    /// Earlier messages of `key` have rows of their own, which are delivered first.
    pub(super) fn block(&mut self, key: &SmolStr) {
        if self.has(key) {
            self.blocked.push(key.clone());
            self.list(key);
        }
    }

    fn list(&mut self, key: &str) {
        if let Some(positions) = self.keys.get_mut(key) {
            positions.listed = true;
        }
    }

    /// Looks again at the blocked keys.
    pub(super) fn unblock(&mut self) {
        self.due.extend(self.blocked.drain(..));
    }

    /// Takes a key whose next messages may be claimed, and the row that has their positions.
    pub(super) fn next_due(&mut self) -> Option<(SmolStr, i64)> {
        loop {
            let key = self.due.pop_front()?;
            let Some(positions) = self.keys.get_mut(&key) else { continue };
            positions.listed = false;
            if let Some(row) = positions.rows.front() {
                return Some((key, row.id));
            }
        }
    }

    /// The row `id` of `key` has `left` positions now.
    pub(super) fn set_left(&mut self, key: &str, id: i64, left: usize) {
        let Some(positions) = self.keys.get_mut(key) else { return };
        match positions.rows.front_mut().filter(|row| row.id == id) {
            Some(row) if left > 0 => row.count = left,
            Some(_) => drop(positions.rows.pop_front()),
            None => {}
        }
        if positions.rows.is_empty() {
            self.keys.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_due_once_until_its_positions_are_used_up() {
        let (a, b) = (SmolStr::new("a"), SmolStr::new("b"));
        let mut postponed = Postponed::default();
        postponed.set_due("a");
        assert!(postponed.next_due().is_none(), "nothing of it is postponed");
        postponed.add(a.clone(), 7, 101, 100);
        assert_eq!(postponed.last_row("a"), Some((7, 101)));
        postponed.add(a.clone(), 7, 5001, ROW - 100);
        assert_eq!(postponed.last_row("a"), None, "the row is full");
        postponed.add(a.clone(), 9, 5002, 1);
        postponed.add(b.clone(), 8, 11, 10);
        for key in ["a", "b", "a"] {
            postponed.set_due(key);
        }
        assert_eq!(postponed.next_due(), Some((a.clone(), 7)));
        postponed.set_left("a", 7, 0);
        assert_eq!(postponed.next_due(), Some((b.clone(), 8)));
        assert_eq!(postponed.next_due(), None);
        postponed.block(&b);
        postponed.set_due("b");
        assert_eq!(postponed.next_due(), None, "it waits for rows of its own");
        postponed.unblock();
        postponed.set_due("a");
        assert_eq!(postponed.next_due(), Some((b, 8)));
        assert_eq!(postponed.next_due(), Some((a, 9)));
        postponed.set_left("a", 9, 0);
        postponed.set_left("b", 8, 4);
        assert!(!postponed.has("a") && postponed.has("b") && postponed.has_room(KEYS - 1));
        assert!(!postponed.has_room(KEYS));
    }
}
