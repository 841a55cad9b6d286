//! Requests over core NATS (stub, filled in below).
use super::NatsTransport;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::transport::{IncomingRequest, Replies, Requests, Serve};
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::sync::mpsc;
impl Requests for NatsTransport {
    fn call(&self, _: Message, _: Duration) -> BoxFuture<'_, Result<Replies>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "no")) })
    }
    fn serve(&self, _: Serve) -> BoxFuture<'_, Result<mpsc::Receiver<IncomingRequest>>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "no")) })
    }
}
