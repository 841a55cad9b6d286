//! Frames of answers on their way to their callers: what waits goes in one pipeline, in order.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Pipeline, Value};
use smol_str::SmolStr;
use tokio::sync::mpsc;

use super::codec::number;
use super::error::{Failure, reply};
use super::link::Link;
use super::serve::Active;
use crate::confirm::Answer;
use crate::error::{Error, ErrorKind, Result};

/// Most frames of one pipeline.
const BATCH: usize = 128;
/// Most pipelines on their way.
const WINDOW: usize = 4;

/// Where frames are handed in. What waits is bounded by the window of each answer and the credit of each service.
pub(super) struct Post(mpsc::UnboundedSender<Letter>);

/// A frame for a caller's channel.
pub(super) struct Letter {
    pub(super) caller: SmolStr,
    pub(super) bytes: Bytes,
    pub(super) active: Arc<Active>,
    /// Nobody asks about a notice.
    pub(super) answer: Option<Answer<()>>,
}

type Sent = (Vec<Letter>, Result<Vec<Value>, Failure>);
type Sending = Pin<Box<dyn Future<Output = Sent> + Send>>;

impl Post {
    pub(super) fn open(link: Arc<Link>) -> Self {
        let (queue, received) = mpsc::unbounded_channel();
        tokio::spawn(run(link, received));
        Self(queue)
    }

    pub(super) fn send(&self, letter: Letter) {
        // Refused only when closed; then the answer drops and says so.
        drop(self.0.send(letter));
    }
}

async fn run(link: Arc<Link>, mut queue: mpsc::UnboundedReceiver<Letter>) {
    let mut flying: FuturesUnordered<Sending> = FuturesUnordered::new();
    let mut open = true;
    while open || !flying.is_empty() {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            Some(sent) = flying.next() => conclude(sent),
            count = queue.recv_many(&mut batch, BATCH), if open && flying.len() < WINDOW => open = count > 0,
        }
        if batch.is_empty() {
            continue;
        }
        let mut sending = send(link.clone(), batch);
        // The first poll hands it to the connection, so that order is kept.
        match futures_util::poll!(&mut sending) {
            std::task::Poll::Ready(sent) => conclude(sent),
            std::task::Poll::Pending => flying.push(sending),
        }
    }
}

fn send(link: Arc<Link>, batch: Vec<Letter>) -> Sending {
    Box::pin(async move {
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for letter in &batch {
            pipeline.cmd("PUBLISH").arg(letter.caller.as_str()).arg(&letter.bytes[..]);
        }
        let replies = link.run(&pipeline).await;
        (batch, replies)
    })
}

/// Tells each sender whether anybody heard its frame.
fn conclude((batch, replies): Sent) {
    let mut replies = match replies {
        Ok(replies) => replies.into_iter(),
        Err(failure) => {
            let error = Error::from(failure);
            for letter in batch {
                letter.conclude(Err(Error::new(error.kind(), "not sent").because(error.to_string())));
            }
            return;
        }
    };
    for letter in batch {
        let heard = reply(replies.next().unwrap_or_default()).map(|heard| number(&heard));
        letter.conclude(heard);
    }
}

impl Letter {
    /// Tells the sender how many heard it.
    pub(super) fn conclude(self, heard: Result<i64>) {
        let result = match heard {
            Ok(1..) => Ok(()),
            Ok(_) => {
                self.active.gone.cancel();
                Err(Error::new(ErrorKind::Closed, "nobody waits for this answer any more"))
            }
            Err(error) => Err(error),
        };
        if let Some(answer) = self.answer {
            let _ = answer.send(result.map_err(|error| error.during("reply")));
        }
    }
}
