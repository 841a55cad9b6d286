//! An incoming message that passes through layers to a handler, and the identity of that handler.

use std::fmt;
use std::sync::Arc;

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use smol_str::{SmolStr, format_smolstr};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reply_channel::Exchange;
use crate::bus::Bus;
use crate::context::Context;
use crate::delivery::DeliveryInfo;
use crate::envelope::Envelope;
use crate::message::Message;

/// The characters that are escaped in a source, so that no two keys are equal.
const SEPARATED: &AsciiSet = &CONTROLS.add(b':').add(b'%');

/// The identity of a handler, which every message carries on its way to the handler.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// The service's name.
    pub service: SmolStr,
    /// The group's name, `<service>.<event>` unless it is set.
    pub group: SmolStr,
    /// The most attempts before a message becomes a dead letter.
    pub attempts: u32,
    /// Whether the handler takes broadcasts: a failed message is neither retried nor stored.
    pub broadcast: bool,
    /// Whether messages that are not CloudEvents are accepted as plain data.
    pub plain: bool,
    /// The number of calls of the handler at a time.
    pub concurrency: usize,
    /// Cancelled when the service stops fetching.
    pub(crate) draining: CancellationToken,
}

/// The input of layers and extractors: the message, its envelope, and the handler that it is for.
///
/// A layer that calls the handler twice can clone it cheaply; only the service settles the message.
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
    /// Returns the message as it was received.
    pub fn message(&self) -> &Arc<Message> {
        &self.message
    }

    /// Returns the attempt, the position and the times of the delivery.
    pub fn info(&self) -> &DeliveryInfo {
        &self.info
    }

    /// Returns the envelope: attributes and undecoded data.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// Returns the correlation, the cause and the trace for all work on this message.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the bus that delivered the message.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Returns the handler's identity, such as its group and the most attempts.
    pub fn handler(&self) -> &Identity {
        &self.handler
    }

    /// Returns the time after which the result is no longer needed.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether a caller waits for an answer.
    pub fn is_request(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether handling the message again is harmless: true for events, which are delivered at least once anyway, and
    /// for requests that are declared idempotent and have not sent a chunk of their answer.
    pub fn is_repeatable(&self) -> bool {
        self.asked.as_ref().is_none_or(|asked| asked.is_repeatable())
    }

    /// Returns a token that is cancelled when the service stops fetching: a layer that only waits should then release
    /// the message.
    pub fn draining(&self) -> &CancellationToken {
        &self.handler.draining
    }

    /// Returns the key for effects that must happen once; it is the same in all attempts of this group to handle this
    /// event. The key is `group:source:id`, because an id is unique within its source only; `:` and `%` in the source
    /// are percent-encoded.
    pub fn idempotency_key(&self) -> SmolStr {
        let meta = &self.envelope.meta;
        let source = utf8_percent_encode(&meta.source, SEPARATED);
        format_smolstr!("{}:{source}:{}", self.handler.group, meta.id)
    }

    /// Returns the key as earlier builds made it, which did not contain the source.
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
