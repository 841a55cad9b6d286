//! The journal of a keyed group: stores the owner's notes about attempts and due times for the next owner.
//!
//! It is a durable queue of one message. It is written before a retry is confirmed, and when an owner leaves: the broker
//! then counts one attempt too many for messages that the owner had fetched and no handler had tried. A lost journal
//! costs a count and a wait, never a message.

use std::collections::HashMap;
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::types::ShortString;
use smol_str::SmolStr;
use tokio_util::task::AbortOnDropHandle;

use super::attempts::{Note, Notes};
use super::client::Client;
use super::declare::{arguments, number, word};
use super::republish::Republisher;
use super::settle::Asker;
use super::writing::Writing;
use event_transport::consumer_name;
use event_transport::error::{Error, ErrorKind, Result};
use event_transport::subject::Group;

/// One member's access to the journal of its group.
pub(super) struct Journal {
    client: Arc<Client>,
    republisher: Republisher,
    group: Group,
    /// Notes from before the channel was lost: they are valid unless another member has owned the group since.
    earlier: HashMap<SmolStr, Note>,
    /// The id of this writer in the journal.
    writer: SmolStr,
    loaded: bool,
    declared: bool,
    /// The write in progress.
    writing: Writing,
    /// Callers to notify after the next write.
    to_write: Vec<Asker>,
}

impl Journal {
    pub(super) fn new(client: Arc<Client>, republisher: Republisher, group: Group) -> Self {
        Self {
            client,
            republisher,
            group,
            earlier: HashMap::new(),
            writer: consumer_name(),
            loaded: false,
            declared: false,
            writing: Writing::default(),
            to_write: Vec::new(),
        }
    }

    /// Forgets the notes of lost channels.
    pub(super) fn clear(&mut self) {
        self.earlier.clear();
    }

    /// The channel was lost: another member may own the group, and write the journal, before this one owns it again.
    pub(super) fn lose(&mut self, notes: &mut Notes) {
        self.loaded = false;
        self.earlier.extend(notes.take());
    }

    /// Adds the previous owner's notes, once for each time that this member becomes the owner.
    pub(super) async fn load(&mut self, notes: &mut Notes) {
        if std::mem::replace(&mut self.loaded, true) {
            return;
        }
        let queue = self.client.names.journal(&self.group);
        let read = self.client.declarer.run("read the attempts", async |channel| {
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
        notes.add(known);
    }

    /// Writes all notes to the journal.
    fn store(&mut self, notes: &Notes) -> impl Future<Output = Result<()>> + Send + 'static {
        let empty = notes.is_empty() && !self.declared;
        let declare = !std::mem::replace(&mut self.declared, true);
        let bytes = notes.to_json();
        let (client, queue) = (self.client.clone(), self.client.names.journal(&self.group));
        let (republisher, writer) = (self.republisher.clone(), self.writer.clone());
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
                client.declarer.declare(queue.clone(), arguments).await?;
                client.declarer.settle_names().await;
            }
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_app_id(writer.as_str().into())
                .with_content_type("application/json".into());
            republisher.to_queue(queue, properties, bytes.into()).await
        }
    }

    /// Notifies the caller after the next write.
    pub(super) fn tell_when_written(&mut self, answer: Asker) {
        self.to_write.push(answer);
    }

    /// Starts to write the notes if a caller waits for it, one write after the other so that the newest is stored last;
    /// retries since the last write share the next one.
    ///
    /// The write runs in its own task: it may hold the control channel while the member waits for that channel in
    /// [`load`](Self::load), and a member that waits does not poll its own write.
    pub(super) fn write(&mut self, notes: &Notes) {
        if self.writing.is_busy() || self.to_write.is_empty() {
            return;
        }
        let told = std::mem::take(&mut self.to_write);
        let stored = AbortOnDropHandle::new(tokio::spawn(self.store(notes)));
        let cancelled =
            |error| Err(Error::new(ErrorKind::Internal, "the write was cancelled").because(error));
        self.writing.start(told, async move { stored.await.unwrap_or_else(cancelled) });
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_busy()
    }

    /// Waits for the end of the write in progress. If it failed, a crash costs the count and the wait, not the message.
    pub(super) async fn written(&mut self) {
        let (told, result) = self.writing.done().await;
        self.end(told, result);
    }

    fn end(&self, told: Vec<Asker>, result: Result<()>) {
        if let Err(error) = result {
            tracing::warn!(%error, group = %self.group, "the retries of a keyed group could not be stored; its next owner will not wait for them");
        }
        told.into_iter().for_each(|answer| answer.tell(Ok(())));
    }

    /// Ends the write in progress, and then writes everything that the next owner needs.
    pub(super) async fn write_all(&mut self, notes: &Notes) {
        if self.writing.is_busy() {
            self.written().await;
        }
        let told = std::mem::take(&mut self.to_write);
        let result = self.store(notes).await;
        self.end(told, result);
    }
}
