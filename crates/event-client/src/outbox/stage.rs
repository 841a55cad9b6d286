//! Staging: writes events as outbox rows within the caller's transaction, and converts a row back into the message that
//! the relay publishes.

use std::collections::BTreeMap;
use std::future::IntoFuture;

use futures_util::future::BoxFuture;
use serde_json::value::RawValue;
use smol_str::SmolStr;

use super::announce;
use crate::bus::Settings;
use crate::codec::Codec;
use crate::context::Context;
use crate::envelope::{self, Envelope, Meta, Mode};
use crate::event::Event;
use crate::message::{Headers, Message, MessageId};
use crate::sql::{Dialect, Row, explain, now};
use crate::subject::Subject;
use event_transport::error::{Error, ErrorKind, Result};

/// A placeholder for the source until the relay writes the source of its bus.
const SOURCE: &str = "/outbox";
const CONTENT_TYPE: &str = "content-type";
/// The number of rows that one database call inserts at most.
const AT_ONCE: usize = 1000;

/// Writes `event` into the outbox within `transaction`; await the returned builder.
///
/// Correlation, cause and trace are those of the event that this task handles, unless [`Stage::context`] sets them.
pub fn stage<'a, 't, D: Dialect, E: Event>(
    transaction: &'a mut sqlx::Transaction<'t, D>,
    event: E,
) -> Stage<'a, 't, D, E> {
    Stage { transaction, event, draft: Draft::default() }
}

/// Writes many events into the outbox within `transaction`, in their order, and returns their ids. On PostgreSQL one
/// round trip writes up to 1000 events.
///
/// Correlation, cause and trace are those of the event that this task handles.
///
/// # Errors
/// An event that cannot be encoded, or a database error; roll the transaction back then.
pub fn stage_all<'a, D: Dialect, E: Event>(
    transaction: &'a mut sqlx::Transaction<'_, D>,
    events: impl IntoIterator<Item = E>,
) -> BoxFuture<'a, Result<Vec<MessageId>>> {
    let named = |error: Error| error.during("stage").with("subject", E::SUBJECT);
    let rows: Result<Vec<_>> = events.into_iter().map(|event| Draft::default().row(&event)).collect();
    let connection: &'a mut D::Connection = transaction;
    Box::pin(async move {
        let (ids, rows): (Vec<_>, Vec<_>) = rows.map_err(named)?.into_iter().unzip();
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let some = rows.by_ref().take(AT_ONCE).collect();
            D::stage(connection, some).await.map_err(explain::<D>("stage")).map_err(named)?;
        }
        announce();
        Ok(ids)
    })
}

/// An event that is being staged; `.await` writes its row and returns its id.
#[must_use = "nothing is staged until it is awaited"]
pub struct Stage<'a, 't, D: Dialect, E> {
    transaction: &'a mut sqlx::Transaction<'t, D>,
    event: E,
    draft: Draft,
}

/// The caller's options of an event, in addition to its data.
#[derive(Default)]
struct Draft {
    id: Option<MessageId>,
    key: Option<SmolStr>,
    about: Option<SmolStr>,
    headers: Headers,
    context: Option<Context>,
    refused: Option<Error>,
}

impl<D: Dialect, E: Event> Stage<'_, '_, D, E> {
    /// Uses this id instead of a new UUIDv7. Staging an id that is already in the table changes nothing.
    pub fn id(mut self, id: impl Into<MessageId>) -> Self {
        self.draft.id = Some(id.into());
        self
    }

    /// Uses this ordering key instead of the event's own.
    pub fn key(mut self, key: impl Into<SmolStr>) -> Self {
        self.draft.key = Some(key.into());
        self
    }

    /// Sets the entity that the event is about (CloudEvents `subject`).
    pub fn entity(mut self, entity: impl Into<SmolStr>) -> Self {
        self.draft.about = Some(entity.into());
        self
    }

    /// Adds a free header; an invalid name or value makes the staging fail.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Err(error) = self.draft.headers.set(name, value) {
            self.draft.refused.get_or_insert(error);
        }
        self
    }

    /// Takes correlation, cause and trace from `context`, such as the context of a batch's item.
    pub fn context(mut self, context: Context) -> Self {
        self.draft.context = Some(context);
        self
    }
}

impl Draft {
    /// Returns the row and the id in it.
    fn row<E: Event>(self, event: &E) -> Result<(MessageId, Row)> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let subject = Subject::new(E::SUBJECT)?;
        let id = self.id.unwrap_or_else(MessageId::now);
        let key = self.key.or_else(|| event.key());
        let mut meta = Meta::new(id.clone(), SOURCE, SmolStr::new_static(E::SUBJECT));
        meta.subject = self.about;
        meta.partitionkey = key.clone();
        meta.caused_by(self.context.or_else(Context::current).as_ref());
        // Always JSON, whatever codec the bus has: people and change data capture read the table.
        let (content_type, mut headers, payload) =
            envelope::write(&mut meta, event, Codec::Json, Mode::Binary)?;
        headers.add_free(&self.headers)?;
        let mut stored: BTreeMap<&str, &str> = headers.iter().collect();
        stored.insert(CONTENT_TYPE, &content_type);
        let row = Row {
            position: 0,
            id: id.to_string(),
            aggregatetype: subject.topic().to_owned(),
            aggregateid: key.map(String::from),
            kind: E::SUBJECT.to_owned(),
            payload: String::from_utf8(payload.into()).expect("JSON is UTF-8"),
            headers: serde_json::to_string(&stored).expect("text always encodes"),
            created: now(),
        };
        Ok((id, row))
    }
}

impl<'a, D: Dialect, E: Event> IntoFuture for Stage<'a, '_, D, E> {
    type Output = Result<MessageId>;
    type IntoFuture = BoxFuture<'a, Result<MessageId>>;

    fn into_future(self) -> Self::IntoFuture {
        // Encoded now: in the task whose context it takes, and so that the future does not own the event.
        let named = |error: Error| error.during("stage").with("subject", E::SUBJECT);
        let row = self.draft.row(&self.event).map_err(named);
        let connection: &'a mut D::Connection = self.transaction;
        Box::pin(async move {
            let (id, row) = row?;
            D::stage(connection, vec![row]).await.map_err(explain::<D>("stage")).map_err(named)?;
            announce();
            Ok(id)
        })
    }
}

impl<D: Dialect, E> std::fmt::Debug for Stage<'_, '_, D, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage")
            .field("id", &self.draft.id)
            .field("key", &self.draft.key)
            .finish_non_exhaustive()
    }
}

/// Converts a row into the message to publish, with the envelope settings of this bus.
pub(super) fn message(row: &Row, settings: &Settings) -> Result<Message> {
    let damaged = |what: &str| Error::new(ErrorKind::Corrupt, format!("the row's {what} cannot be read"));
    let stored: BTreeMap<String, String> =
        serde_json::from_str(&row.headers).map_err(|error| damaged("headers").because(error))?;
    let mut staged = Message::new(Subject::new(&row.kind)?, "", row.payload.clone());
    for (name, value) in &stored {
        match name.as_str() {
            CONTENT_TYPE => staged.content_type = value.into(),
            // Checked when the row was staged, by the rules that were valid then.
            name => staged.headers.restore(name.into(), value.into()),
        }
    }
    let mut meta = Envelope::read(&staged)?.meta;
    meta.source = settings.source.clone();
    let data: &RawValue =
        serde_json::from_str(&row.payload).map_err(|error| damaged("payload").because(error))?;
    let (content_type, mut headers, payload) = envelope::write(&mut meta, data, Codec::Json, settings.mode)?;
    // The attributes are written into the envelope again; only free headers are copied unchanged.
    let free = |name: &str| !name.starts_with("ce-") && !matches!(name, "traceparent" | "tracestate");
    for (name, value) in staged.headers.iter().filter(|(name, _)| free(name)) {
        headers.restore(name.into(), value.into());
    }
    Ok(Message {
        id: row.id.as_str().into(),
        key: row.aggregateid.as_deref().map(SmolStr::new),
        content_type,
        headers,
        payload,
        durability: settings.durability,
        ..staged
    })
}
