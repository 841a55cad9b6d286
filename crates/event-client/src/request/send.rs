//! Sends one request to the transport, directly or through the layers of a client.

use tokio::time::Instant;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use super::Answer;
use crate::bus::Connection;
use crate::context::Context;
use crate::message::Message;
use crate::status::Code;
use event_transport::error::{Error, ErrorKind, Result};

/// A request that passes through a client's layers to the bus.
///
/// A layer that sends a request twice can clone it cheaply: the payload is shared, and a repeat keeps its id.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub(crate) message: Message,
    pub(crate) context: Context,
    pub(crate) deadline: Instant,
    pub(crate) idempotent: bool,
    pub(crate) system: &'static str,
}

impl Outgoing {
    /// Returns the message to send.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// Returns the correlation, the cause and the trace span of the caller.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Returns the time by which the answer must have arrived.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Returns the name of the transport that sends the request.
    pub fn system(&self) -> &'static str {
        self.system
    }

    /// Whether repeating the request is harmless.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }
}

/// The tower service that a client's layers wrap: it takes one request and returns its answer.
pub type BoxCall = BoxCloneSyncService<Outgoing, Answer, Error>;

/// Sends a call to the transport, through the layers of the client if there are any.
#[derive(Clone, Copy)]
pub(crate) struct Sender<'a> {
    connection: &'a Connection,
    /// None without a client.
    layers: Option<&'a BoxCall>,
}

impl<'a> Sender<'a> {
    pub(crate) fn direct(connection: &'a Connection) -> Self {
        Self { connection, layers: None }
    }

    pub(super) fn layered(connection: &'a Connection, layers: &'a BoxCall) -> Self {
        Self { connection, layers: Some(layers) }
    }

    pub(super) fn connection(&self) -> &'a Connection {
        self.connection
    }

    pub(super) async fn send(self, outgoing: Outgoing) -> Result<Answer> {
        let Some(layers) = self.layers else { return send(self.connection, outgoing).await };
        let until = outgoing.deadline;
        // Layers may wait, for a permit or before a repeat; the deadline bounds these waits too.
        let answer = tokio::time::timeout_at(until, layers.clone().oneshot(outgoing)).await;
        answer.unwrap_or_else(|_| Err(late()))
    }
}

/// Sends a request to the transport and waits for the first frame of its answer.
pub(super) async fn send(connection: &Connection, outgoing: Outgoing) -> Result<Answer> {
    let Outgoing { message, deadline, .. } = outgoing;
    let within = deadline.saturating_duration_since(Instant::now());
    if within.is_zero() {
        return Err(Error::new(ErrorKind::Timeout, "the deadline had passed before the request was sent"));
    }
    let ask = async {
        let mut replies = connection.transport().requests().call(message, within).await?;
        match replies.next().await {
            Some(first) => {
                let answer = Answer::new(first?, replies, deadline);
                // The deadline has passed on both sides, so this is the caller's own timeout.
                let late_too = answer.code() == Code::DeadlineExceeded && Instant::now() >= deadline;
                if late_too { Err(late()) } else { Ok(answer) }
            }
            None => Err(Error::new(
                ErrorKind::Unavailable,
                "the service disconnected without an answer; send the request again",
            )),
        }
    };
    tokio::time::timeout_at(deadline, ask).await.unwrap_or_else(|_| Err(late()))
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "no answer arrived within the deadline")
}
