//! Attempts of a keyed group that the broker's own count does not tell, and where they are written down.
//!
//! A keyed message keeps its place in the queue while it waits for a retry, so its attempts cannot travel on a copy of it.
//! The owner keeps the difference to the broker's count; a durable queue of one message keeps it for the next owner. It is
//! written with each keyed retry and when an owner leaves: messages that it had fetched and nobody tried are counted one
//! too many by the broker then. Losing it costs a count, never a message.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use lapin::options::{BasicGetOptions, BasicRejectOptions};
use smol_str::SmolStr;

use super::Inner;
use super::codec::id_text;
use super::control::{arguments, number, word};
use super::member::Member;
use crate::error::Result;
use crate::message::Message;
use crate::subject::Group;

/// What to add to the broker's count, by message.
#[derive(Debug, Default)]
pub(super) struct Counted {
    offsets: HashMap<SmolStr, i64>,
    loaded: bool,
    declared: bool,
}

impl Counted {
    pub(super) fn offset(&self, message: &Message) -> i64 {
        if self.offsets.is_empty() {
            0
        } else {
            self.offsets.get(&id_text(&message.id)).copied().unwrap_or(0)
        }
    }

    pub(super) fn keep(&mut self, message: &Message, offset: i64) {
        match offset {
            0 => self.forget(message),
            _ => drop(self.offsets.insert(id_text(&message.id), offset)),
        }
    }

    pub(super) fn forget(&mut self, message: &Message) {
        if !self.offsets.is_empty() {
            self.offsets.remove(&id_text(&message.id));
        }
    }

    pub(super) fn clear(&mut self) {
        self.offsets.clear();
    }

    /// Reads, once, what the owner before us wrote.
    pub(super) async fn load(&mut self, inner: &Arc<Inner>, group: &Group) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let queue = inner.names.journal(group);
        let read = inner.control.run("read the attempts", async |channel| {
            let got = channel.basic_get(queue, BasicGetOptions::default()).await?;
            if let Some(got) = &got {
                channel.basic_reject(got.delivery.delivery_tag, BasicRejectOptions { requeue: true }).await?;
            }
            Ok(got)
        });
        // There is none where nothing was ever written.
        let Ok(Some(got)) = read.await else { return };
        let written: HashMap<SmolStr, i64> = serde_json::from_slice(&got.delivery.data).unwrap_or_default();
        for (id, offset) in written {
            self.offsets.entry(id).or_insert(offset);
        }
    }

    /// Writes everything down.
    pub(super) fn store(
        &mut self,
        inner: &Arc<Inner>,
        group: &Group,
    ) -> impl Future<Output = Result<()>> + Send + 'static {
        let empty = self.offsets.is_empty() && !self.declared;
        let declare = !std::mem::replace(&mut self.declared, true);
        let bytes = serde_json::to_vec(&self.offsets).expect("plain data");
        let (inner, queue) = (inner.clone(), inner.names.journal(group));
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
                inner.control.declare(queue.clone(), arguments).await?;
                inner.control.settle_names(&inner.names).await;
            }
            let properties = lapin::BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/json".into());
            inner.copier.to_queue(queue, properties, bytes.into()).await
        }
    }
}

impl Member {
    /// All that we have comes again with the broker's count raised by one, though no consumer tried some of it.
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
