//! Requests and replies of one connection: its calls, and the requests that it serves.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::client::Client;
use super::error::closed;
use super::requests::Calls;
use super::serve::Server;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::{Capabilities, IncomingRequest, Replies, Requests, Serve};

/// The request/reply part of the transport.
pub(super) struct Rpc {
    client: Arc<Client>,
    capabilities: Capabilities,
    calls: Calls,
    server: Server,
}

impl Rpc {
    pub(super) fn new(client: &Arc<Client>, capabilities: &Capabilities) -> Arc<Self> {
        Arc::new(Self {
            client: client.clone(),
            capabilities: capabilities.clone(),
            calls: Calls::new(client),
            server: Server::new(client),
        })
    }

    /// Notifies every caller that this connection no longer answers.
    pub(super) fn let_go(&self) {
        self.server.let_go();
    }
}

impl Requests for Rpc {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let fits = self.capabilities.check(&request);
            if self.client.outbound.is_closing() {
                return Err(closed().during("request"));
            }
            fits.map_err(|error| error.during("request"))?;
            self.calls.call(request, within).await.map_err(|error| error.during("request"))
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move { self.server.serve(spec).await.map_err(|error| error.during("serve")) })
    }
}
