//! Shared code of ruststream's three brokers: its transport traits, without its application runtime.

use std::pin::pin;

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use ruststream::{HeaderMap, IncomingMessage, OutgoingMessage, Subscriber, Take};

use crate::contestant::{CONTENT_TYPE, id, in_tasks};

/// Returns the headers that our transport writes.
pub fn headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert("content-type", Bytes::from_static(CONTENT_TYPE.as_bytes()));
    headers.insert("ce-id", id());
    headers
}

/// Publishes through a publisher that takes ownership of the payload.
pub async fn publish<P>(publisher: &P, to: &str, payload: &Bytes, total: usize, window: usize) -> Result<()>
where
    P: ruststream::Publisher<Payload = Take> + Clone + 'static,
{
    let (publisher, to, payload) = (publisher.clone(), to.to_owned(), payload.clone());
    in_tasks(total, window, move || {
        let (publisher, to, payload) = (publisher.clone(), to.clone(), payload.clone());
        async move {
            let message =
                OutgoingMessage::produced(&to, BytesMut::from(&payload[..])).with_headers(headers());
            Ok(publisher.publish(message, None).await?)
        }
    })
    .await
}

/// Publishes through a publisher that borrows the payload.
pub async fn lend<P>(publisher: &P, to: &str, payload: &Bytes, total: usize, window: usize) -> Result<()>
where
    P: ruststream::Publisher<Payload = ruststream::Lend> + Clone + 'static,
{
    let (publisher, to, payload) = (publisher.clone(), to.to_owned(), payload.clone());
    in_tasks(total, window, move || {
        let (publisher, to, payload) = (publisher.clone(), to.clone(), payload.clone());
        async move {
            let message = OutgoingMessage::new(&to, &payload).with_headers(headers());
            Ok(publisher.publish(message, None).await?)
        }
    })
    .await
}

pub async fn consume<S: Subscriber>(
    subscriber: &mut S,
    total: usize,
    at_once: usize,
    mut arrived: impl FnMut(&[u8]) + Send,
) -> Result<()> {
    let mut stream = pin!(subscriber.stream());
    let mut acks = FuturesUnordered::new();
    for _ in 0..total {
        let message =
            stream.next().await.context("the stream ended")?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        arrived(message.payload());
        if at_once == 1 {
            message.ack().await?;
            continue;
        }
        acks.push(message.ack());
        if acks.len() == at_once {
            acks.next().await.context("a full window")??;
        }
    }
    while let Some(done) = acks.next().await {
        done?;
    }
    Ok(())
}
