//! A message on its way through layers to a handler.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use smol_str::{SmolStr, format_smolstr};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::handler::Identity;
use super::reply_channel::Exchange;
use crate::bus::Bus;
use crate::context::Context;
use crate::delivery::DeliveryInfo;
use crate::envelope::Envelope;
use crate::message::Message;

/// Escaped in a source, so that no two keys are alike.
const SEPARATED: &AsciiSet = &CONTROLS.add(b':').add(b'%');

/// What layers and extractors see: the message, its envelope, and where it is being handled.
///
/// Cloning is cheap enough for a layer that calls twice; the right to settle stays with the service.
#[derive(Clone)]
pub struct Incoming {
    pub(crate) message: Arc<Message>,
    pub(crate) info: DeliveryInfo,
    pub(crate) envelope: Envelope,
    pub(crate) context: Context,
    pub(crate) bus: Bus,
    pub(crate) handler: Arc<Identity>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) asked: Option<Arc<Exchange>>,
}

impl Incoming {
    /// The message as it travelled.
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// Attempt, position and times.
    pub fn info(&self) -> &DeliveryInfo {
        &self.info
    }

    /// Attributes and undecoded data.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Correlation, cause and trace for everything done here.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The bus it came over.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// The handler's group, and most attempts.
    pub fn handler(&self) -> &Identity {
        &self.handler
    }

    /// When nobody wants the result any more.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether somebody waits for an answer.
    pub fn is_request(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether handling it once more is harmless: true for events, which arrive at least once anyway, and for
    /// requests that say so and have not sent a chunk of their answer.
    pub fn is_repeatable(&self) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.is_repeatable())
    }

    /// Cancelled when the service stops fetching: a layer that only waits should hand the message back.
    pub fn draining(&self) -> &CancellationToken {
        &self.handler.draining
    }

    /// Stable over all attempts of this group on this event: the key for effects that must happen once. It is
    /// `group:source:id`, as an id is unique within its source only; `:` and `%` in the source are percent-encoded.
    pub fn idempotency_key(&self) -> SmolStr {
        let meta = &self.envelope.meta;
        let source = utf8_percent_encode(&meta.source, SEPARATED);
        format_smolstr!("{}:{source}:{}", self.handler.group, meta.id)
    }

    /// The key as earlier builds made it, which did not tell sources apart.
    pub(crate) fn former_key(&self) -> SmolStr {
        format_smolstr!("{}:{}", self.handler.group, self.envelope.meta.id)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("message", &self.message)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
