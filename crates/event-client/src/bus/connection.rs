//! The connection of a bus: the transport, the settings of this use of it, and the bound of unconfirmed publishes.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use smol_str::SmolStr;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::codec::Codec;
use crate::confirm::Confirm;
use crate::envelope::Mode;
use crate::message::{Durability, Message};
use crate::transport::{Capabilities, Receipt, Transport};
use event_transport::error::{Error, ErrorKind, Result};

/// The settings with which a service uses its bus.
#[derive(Clone, Debug)]
pub struct Settings {
    /// CloudEvents `source` of all events published through this bus, such as `/billing`.
    pub source: SmolStr,
    /// The encoding of payloads. Default JSON.
    pub codec: Codec,
    /// The place of the envelope's attributes: in the payload or in headers. Default structured: in the payload.
    pub mode: Mode,
    /// The most unconfirmed publishes at a time. Default 4096.
    pub window: usize,
    /// The durability of a publish that sets none. Default: the transport's own class.
    pub durability: Durability,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            source: SmolStr::new_static("/backbone"),
            codec: Codec::Json,
            mode: Mode::Structured,
            window: 4096,
            durability: Durability::Default,
        }
    }
}

/// The part of a bus that sends: publishes, calls and clients use it without knowledge of the bus.
pub(crate) struct Connection {
    transport: Arc<dyn Transport>,
    settings: Settings,
    /// Bounds the messages that wait for their publisher confirm; a further publish waits for a free place.
    window: Arc<Semaphore>,
}

impl Connection {
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a durability that the transport cannot guarantee.
    pub(super) fn new(transport: Arc<dyn Transport>, settings: Settings) -> Result<Self> {
        let most = transport.capabilities().max_durability;
        if settings.durability > most {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the transport `{}` with this configuration does not guarantee durability {:?}",
                    transport.capabilities().name,
                    settings.durability
                ),
            )
            .during("connect"));
        }
        let window = Arc::new(Semaphore::new(settings.window.max(1)));
        Ok(Self { transport, settings, window })
    }

    pub(crate) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        self.transport.capabilities()
    }

    /// Whether the next [`send`](Self::send) would wait for a place.
    pub(super) fn is_window_full(&self) -> bool {
        self.window.available_permits() == 0
    }

    /// Takes a place in the window if one is free and no other publish waits for it.
    pub(super) fn try_place(&self) -> Option<OwnedSemaphorePermit> {
        self.window.clone().try_acquire_owned().ok()
    }

    /// Waits for a place in the window. Never wait here while holding places: when two callers do that, neither gets
    /// a place.
    pub(super) fn place(&self) -> impl Future<Output = OwnedSemaphorePermit> + Send + use<> {
        let window = self.window.clone();
        async move { window.acquire_owned().await.expect("the window is never closed") }
    }

    /// Waits for a [`place`](Self::place) and sends the message.
    pub(super) async fn send(&self, message: Message) -> Result<(OwnedSemaphorePermit, Confirm<Receipt>)> {
        let slot = self.place().await;
        let subject = message.subject.clone();
        let mut confirm = self.transport.publish(message);
        // The transport refuses at once a message that it cannot store as requested.
        match confirm.refusal() {
            Some(error) => Err(error.during("publish").with("subject", subject)),
            None => Ok((slot, confirm)),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("transport", &self.transport).field("settings", &self.settings).finish()
    }
}
