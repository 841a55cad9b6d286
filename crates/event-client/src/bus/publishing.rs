//! The future of one publish: it takes a place in the bus's window, sends the message and waits for its confirmation.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop;

use super::connection::Connection;
use crate::confirm::Confirm;
use crate::message::Message;
use crate::subject::Subject;
use crate::transport::Receipt;
use event_transport::error::Result;

/// Sends a message when it is awaited, and resolves when the transport has confirmed it.
///
/// One concrete type instead of a boxed future: only the wait for a place in a full window allocates.
#[must_use = "nothing is sent until it is awaited"]
pub struct Publishing<'a> {
    connection: &'a Connection,
    step: Step,
}

enum Step {
    Encoded(Result<Message>),
    /// The window is full.
    Waiting(BoxFuture<'static, OwnedSemaphorePermit>, Message),
    Sent {
        subject: Subject,
        confirm: Confirm<Receipt>,
        _slot: OwnedSemaphorePermit,
    },
    Done,
}

impl<'a> Publishing<'a> {
    pub(super) fn new(connection: &'a Connection, message: Result<Message>) -> Self {
        Self { connection, step: Step::Encoded(message) }
    }

    fn send(&self, slot: OwnedSemaphorePermit, message: Message) -> Step {
        let subject = message.subject.clone();
        Step::Sent { subject, confirm: self.connection.transport().publish(message), _slot: slot }
    }
}

impl Future for Publishing<'_> {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match &mut self.step {
                Step::Encoded(_) => {
                    // A place that is free and a confirmation that is ready never suspend the task, so the task's
                    // budget is used here: a loop of publishes lets other tasks run.
                    let budget = ready!(coop::poll_proceed(cx));
                    budget.made_progress();
                    let Step::Encoded(message) = std::mem::replace(&mut self.step, Step::Done) else {
                        unreachable!("matched above");
                    };
                    let message = message?;
                    self.step = match self.connection.try_place() {
                        Some(slot) => self.send(slot, message),
                        None => Step::Waiting(Box::pin(self.connection.place()), message),
                    };
                }
                Step::Waiting(place, _) => {
                    let slot = ready!(place.as_mut().poll(cx));
                    let Step::Waiting(_, message) = std::mem::replace(&mut self.step, Step::Done) else {
                        unreachable!("matched above");
                    };
                    self.step = self.send(slot, message);
                }
                Step::Sent { subject, confirm, .. } => {
                    let confirmed = ready!(Pin::new(confirm).poll(cx));
                    let result =
                        confirmed.map_err(|error| error.during("publish").with("subject", &*subject));
                    self.step = Step::Done;
                    return Poll::Ready(result);
                }
                Step::Done => panic!("polled after completion"),
            }
        }
    }
}

impl fmt::Debug for Publishing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publishing").field("bus", &self.connection).finish_non_exhaustive()
    }
}
