//! Attempts and due times of a keyed group's messages, which the queue does not hold, and the journal that stores them
//! for the next owner.
//!
//! A keyed message keeps its place in the queue while it waits for a retry, so neither its attempts nor the time of its
//! next one can travel on a copy of it. The owner keeps the difference to the broker's count, and the due time; a
//! durable queue of one message, the journal, stores them for the next owner. It is written before a retry is
//! confirmed, and when an owner leaves: the broker then counts one attempt too many for messages that the owner had
//! fetched and no handler had tried. A lost journal costs a count and a wait, never a message.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use jiff::Timestamp;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::types::ShortString;
use serde::{Deserialize, Serialize};
use smol_str::SmolStr;

use super::codec::id_text;
use super::declare::{arguments, number, word};
use super::member::Member;
use super::settle::Asker;
use super::{Inner, delay_queues};
use crate::error::Result;
use crate::message::Message;
use crate::subject::Group;
use crate::transport::consumer_name;

/// The stored facts about one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
struct Note {
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

/// The notes of one member, by message.
#[derive(Debug)]
pub(super) struct Counted {
    notes: HashMap<SmolStr, Note>,
    /// Notes from before the channel was lost: they are valid unless another member has owned the group since.
    earlier: HashMap<SmolStr, Note>,
    /// The id of this writer in the journal.
    writer: SmolStr,
    loaded: bool,
    declared: bool,
}

impl Default for Counted {
    fn default() -> Self {
        Self {
            notes: HashMap::new(),
            earlier: HashMap::new(),
            writer: consumer_name(),
            loaded: false,
            declared: false,
        }
    }
}

impl Counted {
    fn note(&self, message: &Message) -> Note {
        if self.notes.is_empty() {
            return Note::default();
        }
        self.notes.get(&id_text(&message.id)).copied().unwrap_or_default()
    }

    fn put(&mut self, message: &Message, note: Note) {
        if note == Note::default() {
            self.forget(message);
        } else {
            self.notes.insert(id_text(&message.id), note);
        }
    }

    pub(super) fn offset(&self, message: &Message) -> i64 {
        self.note(message).offset
    }

    /// The time until the message's next attempt, if that is in the future.
    pub(super) fn left(&self, message: &Message) -> Option<std::time::Duration> {
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
        if !self.notes.is_empty() {
            self.notes.remove(&id_text(&message.id));
        }
    }

    pub(super) fn clear(&mut self) {
        self.notes.clear();
        self.earlier.clear();
    }

    /// Another member may own the group, and write the journal, before this one owns it again.
    pub(super) fn lose(&mut self) {
        self.loaded = false;
        self.earlier.extend(self.notes.drain());
    }

    /// Reads the previous owner's journal, once for each time that this member becomes the owner.
    pub(super) async fn load(&mut self, inner: &Arc<Inner>, group: &Group) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let queue = inner.names.journal(group);
        let read = inner.declarer.run("read the attempts", async |channel| {
            let got = channel.basic_get(queue, BasicGetOptions::default()).await?;
            if let Some(got) = &got {
                channel.basic_reject(got.delivery.delivery_tag, BasicRejectOptions { requeue: true }).await?;
            }
            Ok(got)
        });
        let mut known = std::mem::take(&mut self.earlier);
        // There is no journal if nothing was ever written; one that this member wrote is older than its own notes.
        if let Ok(Some(got)) = read.await {
            let writer = got.delivery.properties.app_id().as_ref().map(ShortString::as_str);
            if writer != Some(self.writer.as_str()) {
                known = serde_json::from_slice(&got.delivery.data).unwrap_or_default();
            }
        }
        for (id, note) in known {
            self.notes.entry(id).or_insert(note);
        }
    }

    /// Writes all notes to the journal.
    pub(super) fn store(
        &mut self,
        inner: &Arc<Inner>,
        group: &Group,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let empty = self.notes.is_empty() && !self.declared;
        let declare = !std::mem::replace(&mut self.declared, true);
        let bytes = serde_json::to_vec(&self.notes).expect("plain data");
        let (inner, queue) = (inner.clone(), inner.names.journal(group));
        let writer = self.writer.clone();
        async move {
            if empty {
                return Ok(());
            }
            if declare {
                let arguments = arguments([
                    ("x-queue-type", word("quorum")),
                    ("x-max-length", number(1)),
                    ("x-overflow", word("drop-head")),
                    ("x-delivery-limit", number(1_000_000_000)),
                ]);
                inner.declarer.declare(queue.clone(), arguments).await?;
                inner.declarer.settle_names(&inner.names).await;
            }
            let properties = lapin::BasicProperties::default()
                .with_delivery_mode(2)
                .with_app_id(writer.as_str().into())
                .with_content_type("application/json".into());
            inner.republisher.to_queue(queue, properties, bytes.into()).await
        }
    }
}

impl Member {
    /// Starts to write the notes, one write after the other so that the newest is stored last; retries since the last
    /// write share the next one.
    pub(super) fn note(&mut self) {
        if self.noting.is_some() || self.to_note.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.to_note);
        let stored = self.counted.store(&self.inner, &self.group);
        self.noting = Some(Box::pin(async move { (told, stored.await) }));
    }

    /// Handles the end of a write. If it failed, a crash costs the count and the wait, not the message.
    pub(super) fn noted(&mut self, (told, result): (Vec<Asker>, Result<()>)) {
        self.noting = None;
        if let Err(error) = result {
            tracing::warn!(%error, group = %self.group, "the retries of a keyed group could not be stored; its next owner will not wait for them");
        }
        told.into_iter().for_each(|answer| answer.tell(Ok(())));
    }

    /// Writes everything that the next owner needs.
    pub(super) async fn note_all(&mut self) {
        if let Some(noting) = self.noting.take() {
            let noted = noting.await;
            self.noted(noted);
        }
        self.note_untaken();
        let told = std::mem::take(&mut self.to_note);
        let result = self.counted.store(&self.inner, &self.group).await;
        self.noted((told, result));
    }

    /// The broker will deliver all messages of this member again with its count raised by one, although no handler
    /// tried some of them.
    pub(super) fn note_untaken(&mut self) {
        let waits = self.waits.values().map(|(item, _)| item);
        let untaken = self.ready.iter().chain(waits).chain(self.lanes.iter());
        for item in untaken {
            self.counted.keep(&item.message, item.offset() - 1);
        }
        for out in self.out.values() {
            self.counted.keep(&out.item.message, out.item.offset());
        }
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
