//! The chunks of a streamed answer.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use futures_util::stream::BoxStream;

use super::{Answer, CallError, Request, answer};
use crate::transport::Frame;

/// The chunks of an answer in order, then the end, or one error and then the end. Dropping the stream cancels the
/// service's work.
#[must_use = "dropping it stops the service's work"]
pub struct ReplyStream<T: Request>(BoxStream<'static, std::result::Result<T::Reply, CallError<T::Error>>>);

impl<T: Request> ReplyStream<T> {
    pub(super) fn new(answer: Answer, within: std::time::Duration) -> Self {
        let chunks = futures_util::stream::unfold(Some(answer), move |answer| async move {
            let mut answer = answer?;
            let frame: Frame = match answer.next().await? {
                Ok(frame) => frame,
                Err(error) => return Some((Err(CallError::new(error, T::SUBJECT, within)), None)),
            };
            let rest = (!frame.last).then_some(answer);
            match answer::read::<T::Reply, T::Error>(&frame) {
                Ok(Some(chunk)) => Some((Ok(chunk), rest)),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        });
        Self(Box::pin(chunks))
    }
}

impl<T: Request> Stream for ReplyStream<T> {
    type Item = std::result::Result<T::Reply, CallError<T::Error>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl<T: Request> fmt::Debug for ReplyStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream").field("subject", &T::SUBJECT).finish_non_exhaustive()
    }
}
