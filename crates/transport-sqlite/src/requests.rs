//! Request and reply: within a process over a private in-memory bus, to other processes through tables.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::handle::Handle;
use super::rpc::Local;
use event_transport::error::{ErrorKind, Result};
use event_transport::message::Message;
use event_transport::supervise;
use event_transport::{IncomingRequest, Replies, Requests, Serve};

/// The requests of one handle.
pub(super) struct Calls {
    handle: Arc<Handle>,
    /// This handle's connection to the members in this process.
    local: Local,
}

impl Calls {
    pub(super) fn new(handle: Arc<Handle>, local: Local) -> Self {
        Self { handle, local }
    }

    /// Ends the calls and the members of this handle.
    pub(super) async fn close(&self) -> Result<()> {
        self.local.close().await
    }
}

impl Requests for Calls {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let open = self.handle.live("request")?;
            if let Some(error) = self.handle.refuse(&request) {
                return Err(error);
            }
            match self.local.call(request.clone(), within).await {
                // No member in this process serves the subject: try the other processes.
                Err(error) if error.kind() == ErrorKind::NoResponder => open.rpc.call(request, within).await,
                answered => answered,
            }
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            let open = self.handle.live("serve")?;
            let (max_in_flight, service, subjects) =
                (spec.max_in_flight.max(1), spec.service.clone(), spec.subjects.clone());
            let largest = self.handle.capabilities.max_payload;
            let mut incoming = self.local.serve(spec).await?;
            let id = open.rpc.announce(&service, &subjects).await?;
            // A second queue, so that this task notices when the receiver is dropped and withdraws the announcement.
            // Each request's responder holds the permit of the member's `max_in_flight`, so this queue does not let the
            // member take more requests.
            let (sender, receiver) = mpsc::channel(max_in_flight);
            let withdrawn = (open.clone(), id.clone());
            let serving = async move {
                loop {
                    let request = tokio::select! {
                        request = incoming.recv() => request,
                        () = sender.closed() => None,
                    };
                    let Some(mut request) = request else { break };
                    request.responder.set_largest(largest);
                    if sender.send(request).await.is_err() {
                        break;
                    }
                }
                drop(incoming);
                open.rpc.withdraw(id).await;
            };
            tokio::spawn(supervise::run("sqlite serve", serving, move || {
                // After a panic, other processes must not send requests to a member that has ended.
                tokio::spawn(async move { withdrawn.0.rpc.withdraw(withdrawn.1).await });
            }));
            Ok(receiver)
        })
    }
}
