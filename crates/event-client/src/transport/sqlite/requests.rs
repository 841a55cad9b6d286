//! Request and reply: within a process over a private in-memory bus, to other processes through [`rpc`](super::rpc).

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
                // No member in this process serves the subject: try the other processes.
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
                rpc::withdraw(&open, id).await;
            };
            tokio::spawn(supervise::run("sqlite serve", serving, move || {
                // After a panic, other processes must not send requests to a member that has ended.
                tokio::spawn(async move { rpc::withdraw(&withdrawn.0, withdrawn.1).await });
            }));
            Ok(receiver)
        })
    }
}

/// The error for a request whose subject no member serves, in this or another process.
pub(super) fn nobody(request: &Message) -> Error {
    Error::new(ErrorKind::NoResponder, "no member serves this subject")
        .during("request")
        .with("subject", &request.subject)
}
