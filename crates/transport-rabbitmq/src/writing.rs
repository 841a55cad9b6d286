//! A write to the broker that is in progress, with the callers to notify at its end.

use std::pin::Pin;

use super::settle::Asker;
use event_transport::error::Result;

type Pending = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// At most one write at a time.
#[derive(Default)]
pub(super) struct Writing(Option<(Vec<Asker>, Pending)>);

impl Writing {
    pub(super) fn is_busy(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn start(
        &mut self,
        told: Vec<Asker>,
        write: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        self.0 = Some((told, Box::pin(write)));
    }

    /// Waits for the end of the write, and returns its callers and its result; never ready without a write. A dropped
    /// wait loses nothing.
    pub(super) async fn done(&mut self) -> (Vec<Asker>, Result<()>) {
        let Some((_, pending)) = &mut self.0 else { return std::future::pending().await };
        let result = pending.await;
        let (told, _) = self.0.take().expect("just awaited");
        (told, result)
    }
}
