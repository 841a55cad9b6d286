//! Request and reply. Within a process a private bus in memory carries them; other processes are reached by
//! [`rpc`](super::rpc).

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::SqliteTransport;
use super::rpc;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::supervise;
use crate::transport::{IncomingRequest, Replies, Requests, Serve, Transport};

impl Requests for SqliteTransport {
    fn call(&self, request: Message, within: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async move {
            let open = self.live("request")?;
            if let Some(error) = self.refuse(&request) {
                return Err(error);
            }
            match self.calls.requests().call(request.clone(), within).await {
                // A member in this process would have been the shortest way.
                Err(error) if error.kind() == ErrorKind::NoResponder => {
                    rpc::call(&open, request, within).await
                }
                answered => answered,
            }
        })
    }

    fn serve(&self, spec: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async move {
            let open = self.live("serve")?;
            let (max_in_flight, service, subjects) =
                (spec.max_in_flight.max(1), spec.service.clone(), spec.subjects.clone());
            let largest = self.capabilities.max_payload;
            let mut incoming = self.calls.requests().serve(spec).await?;
            let id = rpc::announce(&open, &service, &subjects).await?;
            // In between, so that the others learn when the receiver is dropped. A request's place in the member's
            // credit is held by its responder, so this queue lets nobody take more.
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
                rpc::withdraw(&open, id).await;
            };
            tokio::spawn(supervise::run("sqlite serve", serving, move || {
                // The others must not wait for a member that is no more.
                tokio::spawn(async move { rpc::withdraw(&withdrawn.0, withdrawn.1).await });
            }));
            Ok(receiver)
        })
    }
}

/// Nobody serves it, here or elsewhere.
pub(super) fn nobody(request: &Message) -> Error {
    Error::new(ErrorKind::NoResponder, "nobody serves this subject")
        .during("request")
        .with("subject", &request.subject)
}
