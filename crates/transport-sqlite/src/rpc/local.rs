//! Requests within the process: a private bus in memory. This file alone uses the memory transport.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::super::config::MAX_PAYLOAD;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::{IncomingRequest, MemoryConfig, MemoryTransport, Replies, Serve, Transport};

/// A connection to the members in this process.
#[derive(Debug)]
pub(in super::super) struct Local(MemoryTransport);

impl Local {
    /// Creates the bus for one database file.
    pub(super) fn new() -> Result<Self> {
        let mut config = MemoryConfig::default();
        config.max_payload = MAX_PAYLOAD;
        config.max_bytes = config.max_bytes.max(MAX_PAYLOAD);
        MemoryTransport::private(config).map(Self)
    }

    /// Opens another connection to the same bus, with its own [`Local::close`].
    pub(super) fn connect(&self) -> Self {
        Self(self.0.connect())
    }

    /// Calls a member in this process.
    pub(in super::super) fn call(
        &self,
        request: Message,
        within: Duration,
    ) -> BoxFuture<'_, Result<Replies>> {
        self.0.requests().call(request, within)
    }

    /// Registers a member.
    pub(in super::super) fn serve(
        &self,
        spec: Serve,
    ) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        self.0.requests().serve(spec)
    }

    /// Ends the calls and the members of this connection.
    pub(in super::super) async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}
