//! Requests and answers: receives on the inbox channel of this bus the frames of its calls and the credit for its
//! servers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::call::Calls;
use super::client::{Client, Patience};
use super::frame::{self, Packet};
use super::serve::Services;
use event_transport::error::Result;
use event_transport::message::Message;
use event_transport::{Capabilities, IncomingRequest, Replies, Requests, Serve};

pub(super) struct Rpc {
    client: Arc<Client>,
    capabilities: Capabilities,
    calls: Arc<Calls>,
    services: Arc<Services>,
}

impl Rpc {
    /// Subscribes to the inbox channel of this bus.
    pub(super) async fn open(client: Arc<Client>, capabilities: Capabilities) -> Result<Self> {
        let calls = Arc::new(Calls::new(client.clone()));
        let services = Arc::new(Services::new(client.clone()));
        let told = (Arc::downgrade(&calls), Arc::downgrade(&services));
        let on = client.subscriber.on(client.keys.inbox(&client.id), move |message| {
            let (Some(calls), Some(services)) = (told.0.upgrade(), told.1.upgrade()) else { return };
            let packet = Packet::read(Bytes::copy_from_slice(message));
            if packet.get(frame::CREDIT).is_some() {
                services.grant(&packet);
            } else {
                calls.on_message(packet);
            }
        });
        let listening = on.await?;
        let closing = client.connection.closed.clone();
        tokio::spawn(async move {
            closing.cancelled().await;
            drop(listening);
        });
        Ok(Self { client, capabilities, calls, services })
    }

    /// Ends the servers, which notify their callers, and then the calls.
    pub(super) async fn close(&self) {
        self.services.close().await;
        self.calls.close().await;
    }
}

impl Requests for Rpc {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            self.client.check_open("request")?;
            self.capabilities.check(&request).map_err(|error| error.during("request"))?;
            self.calls.call(request, within).await.map_err(|error| error.during("request"))
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            self.client.check_open("serve")?;
            let mut patience = Patience::new(&self.client);
            loop {
                match self.services.serve(spec.clone()).await {
                    Err(error) if patience.lasts(&error).await => {}
                    result => return result.map_err(|error| error.during("serve")),
                }
            }
        })
    }
}
