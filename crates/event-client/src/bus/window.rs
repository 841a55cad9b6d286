//! Many publishes on their way at once, their confirmations collected in order.

use std::collections::VecDeque;
use std::fmt;

use tokio::sync::OwnedSemaphorePermit;

use super::{Bus, publish};
use crate::confirm::Confirm;
use crate::error::Result;
use crate::event::Event;
use crate::message::Message;
use crate::transport::Receipt;

/// A sliding window of unconfirmed publishes. It slides: each push beyond the size waits for the oldest only.
///
/// Dropping it with publishes on their way gives up their confirmations: call [`Window::flush`].
#[must_use = "flush it to know that everything was stored"]
pub struct Window<'a> {
    bus: &'a Bus,
    size: usize,
    waiting: VecDeque<(OwnedSemaphorePermit, Confirm<Receipt>)>,
    receipts: Vec<Receipt>,
}

impl<'a> Window<'a> {
    pub(super) fn new(bus: &'a Bus, size: usize) -> Self {
        // The bus's own window bounds it too: holding all of its places while waiting for one more would never end.
        let size = size.clamp(1, bus.settings().window.max(1));
        Self { bus, size, waiting: VecDeque::new(), receipts: Vec::new() }
    }

    /// Sends an event, first waiting for the oldest when the window is full.
    ///
    /// # Errors
    /// When this event cannot be sent, or the oldest was not stored.
    pub async fn push<E: Event>(&mut self, event: E) -> Result<()> {
        let message = publish::message(self.bus, &event, publish::Options::default())?;
        self.push_message(message).await
    }

    /// Sends a message as it is.
    ///
    /// # Errors
    /// As [`Window::push`].
    pub async fn push_message(&mut self, message: Message) -> Result<()> {
        while self.waiting.len() >= self.size {
            self.settle_oldest().await?;
        }
        // Never wait for a place while holding some: another window may be doing the same.
        while !self.waiting.is_empty() && self.bus.0.window.available_permits() == 0 {
            self.settle_oldest().await?;
        }
        self.waiting.push_back(self.bus.send(message).await?);
        Ok(())
    }

    /// Waits for everything on its way; answers the receipts since the last flush, in order.
    ///
    /// # Errors
    /// The first failure; what came after it is still waited for at the next flush.
    pub async fn flush(&mut self) -> Result<Vec<Receipt>> {
        while !self.waiting.is_empty() {
            self.settle_oldest().await?;
        }
        Ok(std::mem::take(&mut self.receipts))
    }

    async fn settle_oldest(&mut self) -> Result<()> {
        if let Some((_slot, confirm)) = self.waiting.pop_front() {
            self.receipts.push(confirm.await.map_err(|error| error.during("publish"))?);
        }
        Ok(())
    }
}

impl fmt::Debug for Window<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("waiting", &self.waiting.len())
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}
