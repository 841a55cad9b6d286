//! Confirms acknowledgements on demand. The server processes the acknowledgements that one connection sends to one
//! consumer in order, so they are numbered, and one confirmed acknowledgement (NATS' double ack) proves that all
//! earlier ones were processed.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subject as NatsSubject;
use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::ack_log::AckSeq;
use super::client::Client;
use super::error::closed;
use super::group::consumer;
use super::source::Source;
use event_transport::delivery::lease_lost;
use event_transport::error::{Error, ErrorKind, Result};

/// Sends `word`, the payload of an acknowledgement or a renewal, without requesting a reply.
pub(super) fn send(client: &Client, source: &Source, ack: NatsSubject, word: Bytes) -> AckSeq {
    // The incarnation is read before and the number taken after sending: if the connection changes meanwhile, the
    // payload counts as sent over the earlier one, and behind all payloads that were sent at the same time.
    let incarnation = client.link.incarnation();
    client.outbound.send_bare(ack, None, word);
    source.ack_log.number(incarnation)
}

/// Resolves when the server has processed a payload that was sent before and that may be sent twice.
pub(super) async fn confirm(
    client: Arc<Client>,
    source: Arc<Source>,
    ack: NatsSubject,
    word: Bytes,
    seq: AckSeq,
) -> Result<()> {
    if source.ack_log.is_confirmed(seq) {
        return Ok(());
    }
    let until = Instant::now() + client.config.request_timeout;
    let turn = timeout_at(until, source.ack_log.turn.lock()).await;
    if source.ack_log.is_confirmed(seq) {
        return Ok(());
    }
    let _turn = turn.map_err(|_| silent())?;
    // Boxed: most callers find the acknowledgement confirmed and never ask.
    Box::pin(ask(&client, &source, &ack, &word, until)).await
}

/// Sends a payload and resolves when the server has processed it.
pub(super) async fn send_and_confirm(
    client: &Client,
    source: &Source,
    ack: &NatsSubject,
    word: &Bytes,
) -> Result<()> {
    ask(client, source, ack, word, Instant::now() + client.config.request_timeout).await
}

async fn ask(
    client: &Client,
    source: &Source,
    ack: &NatsSubject,
    word: &Bytes,
    until: Instant,
) -> Result<()> {
    loop {
        if client.closed.is_cancelled() {
            return Err(closed().during("settle"));
        }
        let (incarnation, sent) = (client.link.incarnation(), source.ack_log.sent());
        let within = until.max(Instant::now() + Duration::from_millis(1));
        // Through the outbound queue, so that it arrives behind the payloads that were sent before.
        if client.outbound.ask(ack.clone(), None, word.clone(), within).await?.is_some() {
            if client.link.incarnation() == incarnation {
                source.ack_log.confirm(incarnation, sent);
            }
            return Ok(());
        }
        // No responders: the consumer was deleted, or JetStream is not ready after a restart.
        match consumer::info(client, &source.stream, &source.consumer).await {
            Ok(None) => return Err(lease_lost()),
            _ if Instant::now() >= until => return Err(silent()),
            _ => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

fn silent() -> Error {
    Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment").during("settle")
}
