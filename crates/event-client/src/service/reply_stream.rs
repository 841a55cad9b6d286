//! A streamed answer on the side of the service.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::extract::FromIncoming;
use super::incoming::Incoming;
use super::reply_channel::Exchange;
use crate::request::{Request, Streaming};
use event_transport::error::{Error, ErrorKind, Result};

/// Sends the chunks of the answer to a request that is declared with `stream`.
///
/// The handler's return value ends the answer: `Ok(())` ends the stream, and an error is sent after the chunks. When
/// the caller no longer waits, the handler is dropped, wherever it waits.
///
/// ```no_run
/// # use event_client::Request;
/// # use event_client::service::{ReplySink, Req};
/// # use event_client::status::Status;
/// # use serde::{Deserialize, Serialize};
/// #[derive(Request, Serialize, Deserialize)]
/// #[request(name = "chat.ask", reply = String, stream)]
/// struct Ask { question: String }
///
/// async fn ask(out: ReplySink<Ask>, Req(asked): Req<Ask>) -> Result<(), Status> {
///     for word in asked.question.split(' ') {
///         out.send(word.to_uppercase()).await.map_err(|_| Status::internal("cut off"))?;
///     }
///     Ok(())
/// }
/// ```
pub struct ReplySink<T> {
    asked: Arc<Exchange>,
    _request: PhantomData<fn(T)>,
}

impl<T: Request<Shape = Streaming>> ReplySink<T> {
    /// Sends one chunk; returns when the transport has accepted it, so a slow caller slows the service down.
    ///
    /// # Errors
    /// When the chunk cannot be encoded, or the transport cannot send it.
    pub async fn send(&self, chunk: T::Reply) -> Result<()> {
        let frame = self.asked.value(&chunk, false)?;
        drop(chunk);
        self.asked.send(frame).await
    }

    /// Resolves when the caller no longer waits; for work that runs in other tasks.
    pub async fn gone(&self) {
        self.asked.gone().cancelled().await;
    }
}

impl<T: Request<Shape = Streaming>, S> FromIncoming<S> for ReplySink<T> {
    fn from_incoming(incoming: &Incoming, _: &S) -> Result<Self> {
        match &incoming.asked {
            Some(asked) if asked.endpoint.subject == T::SUBJECT => {
                Ok(Self { asked: asked.clone(), _request: PhantomData })
            }
            _ => Err(Error::new(
                ErrorKind::Internal,
                format!("a handler of `{}` has a ReplySink of `{}`", incoming.message.subject, T::SUBJECT),
            )),
        }
    }
}

impl<T: Request> fmt::Debug for ReplySink<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplySink").field("subject", &T::SUBJECT).finish_non_exhaustive()
    }
}
