//! Many concurrent publishes whose confirmations are collected in order.

use std::collections::VecDeque;
use std::fmt;

use tokio::sync::OwnedSemaphorePermit;

use super::connection::Connection;
use super::publish;
use crate::confirm::Confirm;
use crate::event::Event;
use crate::message::Message;
use crate::transport::Receipt;
use event_transport::error::Result;

/// A sliding window of unconfirmed publishes: a push beyond the size waits only for the oldest publish.
///
/// Dropping the window discards the confirmations of its unconfirmed publishes: call [`Window::flush`] first.
#[must_use = "flush it to know that everything was stored"]
pub struct Window<'a> {
    bus: &'a Connection,
    size: usize,
    waiting: VecDeque<(OwnedSemaphorePermit, Confirm<Receipt>)>,
    receipts: Vec<Receipt>,
}

impl<'a> Window<'a> {
    pub(super) fn new(bus: &'a Connection, size: usize) -> Self {
        // The bus's own window is a bound too: a window that held all of its places and waited for one more would
        // wait for ever.
        let size = size.clamp(1, bus.settings().window.max(1));
        Self { bus, size, waiting: VecDeque::new(), receipts: Vec::new() }
    }

    /// Sends an event; when the window is full, waits for the oldest publish first.
    ///
    /// # Errors
    /// An error when this event cannot be sent, or when the oldest was not stored.
    pub async fn push<E: Event>(&mut self, event: E) -> Result<()> {
        let message = publish::message(self.bus, &event, publish::Options::default())?;
        self.push_message(message).await
    }

    /// Sends a message unchanged.
    ///
    /// # Errors
    /// The errors of [`Window::push`].
    pub async fn push_message(&mut self, message: Message) -> Result<()> {
        while self.waiting.len() >= self.size {
            self.settle_oldest().await?;
        }
        // Never wait for a place while holding some: another window may do the same, and neither would get a place.
        while !self.waiting.is_empty() && self.bus.is_window_full() {
            self.settle_oldest().await?;
        }
        self.waiting.push_back(self.bus.send(message).await?);
        Ok(())
    }

    /// Waits for all unconfirmed publishes and returns the receipts since the last flush, in order.
    ///
    /// # Errors
    /// The first failure; the next flush waits for the publishes after it.
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
