//! Lists every version of every shared event, and encodes and verifies its golden samples.

use std::fmt;

use event_client::Result;
use event_client::codec::Codec;
use event_client::envelope::{Envelope, Meta, Mode, write};
use event_client::log::LogBatch;
use event_client::message::{Message, MessageId};
use event_client::subject::Subject;
use jiff::Timestamp;
use schemars::Schema;
use uuid::Uuid;

use crate::sample::Sample;
use crate::{chat, edge, files, orders, platform};

/// One version of one event.
#[derive(Clone, Copy)]
pub struct Entry {
    /// Name without version: `orders.placed`.
    pub name: &'static str,
    /// Name and version: `orders.placed.v2`.
    pub subject: &'static str,
    /// Generates its JSON Schema.
    pub schema: fn() -> Schema,
    /// Encodes its golden sample as a structured event.
    pub encode: fn(Codec) -> Result<Vec<u8>>,
    /// Decodes a golden sample and compares it with the value in the code.
    pub verify: fn(&str, &[u8]) -> Result<bool>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("subject", &self.subject).finish_non_exhaustive()
    }
}

/// Returns all shared events, oldest version first within a name.
pub fn catalog() -> Vec<Entry> {
    vec![
        entry::<files::FileUploaded>(),
        entry::<files::FileEncrypted>(),
        entry::<files::FileStored>(),
        entry::<files::FileDownloaded>(),
        entry::<files::FileExpired>(),
        entry::<files::FileCleaned>(),
        entry::<edge::RequestServed>(),
        entry::<edge::FileCreated>(),
        entry::<orders::OrderPlacedV1>(),
        entry::<orders::OrderPlaced>(),
        entry::<orders::OrderPaid>(),
        entry::<orders::OrderCancelled>(),
        entry::<chat::CreditsReserved>(),
        entry::<chat::AnswerCompleted>(),
        entry::<chat::AnswerAborted>(),
        entry::<platform::ServiceRegistered>(),
        entry::<platform::BreakerChanged>(),
        entry::<LogBatch>(),
    ]
}

fn entry<E: Sample>() -> Entry {
    Entry {
        name: E::NAME,
        subject: E::SUBJECT,
        schema: E::schema,
        encode: |codec| {
            let mut meta = Meta::new(MessageId::Uuid(EVENT), "/samples", E::SUBJECT);
            meta.time = Some(Timestamp::constant(1_763_683_200, 0));
            meta.correlationid = Some(MessageId::Uuid(EVENT));
            meta.partitionkey = E::sample().key();
            meta.traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?);
            write(&mut meta, &E::sample(), codec, Mode::Structured).map(|(_, _, body)| body.to_vec())
        },
        verify: |content_type, body| {
            let message = Message::new(Subject::new(E::SUBJECT)?, content_type, body.to_vec());
            Ok(E::decode(E::VERSION, &Envelope::read(&message)?)? == E::sample())
        },
    }
}

const EVENT: Uuid = Uuid::from_u128(0x0193_4f2e_0000_7000_8000_0000_0000_0001);
