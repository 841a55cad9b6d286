//! Attempts and due times of a keyed group's messages, which the queue does not hold.
//!
//! A keyed message keeps its place in the queue while it waits for a retry, so neither its attempts nor the time of its
//! next one can travel on a copy of it. The owner keeps the difference to the broker's count, and the due time; the
//! journal (`journal.rs`) stores them for the next owner.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::codec::id_text;
use super::delay_queues;
use event_transport::message::Message;

/// The stored facts about one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub(super) struct Note {
    /// The number to add to the broker's count.
    offset: i64,
    /// Unix milliseconds of the next attempt; 0 means at once.
    due: i64,
}

/// A note as it is stored. Earlier versions wrote the offset alone; a note without a due time keeps that form, so that
/// they can read it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Offset(i64),
    Due(i64, i64),
}

impl From<Written> for Note {
    fn from(written: Written) -> Self {
        match written {
            Written::Offset(offset) => Self { offset, due: 0 },
            Written::Due(offset, due) => Self { offset, due },
        }
    }
}

impl From<Note> for Written {
    fn from(note: Note) -> Self {
        if note.due == 0 { Self::Offset(note.offset) } else { Self::Due(note.offset, note.due) }
    }
}

/// The notes of one member, by the message's id.
#[derive(Debug, Default)]
pub(super) struct Notes(HashMap<SmolStr, Note>);

impl Notes {
    fn note(&self, message: &Message) -> Note {
        if self.0.is_empty() {
            return Note::default();
        }
        self.0.get(&id_text(&message.id)).copied().unwrap_or_default()
    }

    fn put(&mut self, message: &Message, note: Note) {
        if note == Note::default() {
            self.forget(message);
        } else {
            self.0.insert(id_text(&message.id), note);
        }
    }

    /// The number to add to the broker's count of deliveries.
    pub(super) fn offset(&self, message: &Message) -> i64 {
        self.note(message).offset
    }

    /// The time until the message's next attempt, if that is in the future.
    pub(super) fn left(&self, message: &Message) -> Option<Duration> {
        let due = self.note(message).due;
        if due == 0 { None } else { delay_queues::left(Timestamp::from_millisecond(due).ok()) }
    }

    pub(super) fn keep(&mut self, message: &Message, offset: i64) {
        let note = self.note(message);
        self.put(message, Note { offset, ..note });
    }

    pub(super) fn keep_due(&mut self, message: &Message, offset: i64, due: Option<Timestamp>) {
        // Rounded up, so that the message is never delivered before its time.
        let due = due.map_or(0, |at| at.as_millisecond().saturating_add(1));
        self.put(message, Note { offset, due });
    }

    pub(super) fn forget(&mut self, message: &Message) {
        if !self.0.is_empty() {
            self.0.remove(&id_text(&message.id));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes and returns all notes.
    pub(super) fn take(&mut self) -> HashMap<SmolStr, Note> {
        std::mem::take(&mut self.0)
    }

    /// Adds the notes of messages that have none.
    pub(super) fn add(&mut self, notes: HashMap<SmolStr, Note>) {
        for (id, note) in notes {
            self.0.entry(id).or_insert(note);
        }
    }

    /// The notes as they are stored.
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(&self.0).expect("plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_of_earlier_versions_are_read_and_plain_ones_stay_as_they_were() {
        let notes: HashMap<SmolStr, Note> =
            serde_json::from_str(r#"{"a":-2,"b":[1,1700000000000]}"#).unwrap();
        assert_eq!(notes["a"], Note { offset: -2, due: 0 });
        assert_eq!(notes["b"], Note { offset: 1, due: 1_700_000_000_000 });
        assert_eq!(serde_json::to_string(&notes["a"]).unwrap(), "-2");
        assert_eq!(serde_json::to_string(&notes["b"]).unwrap(), "[1,1700000000000]");
    }
}
