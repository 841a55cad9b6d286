//! One call: a builder with a method for each option, which sends the request when awaited.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::BoxFuture;
use smol_str::SmolStr;
use tokio::time::Instant;

use super::send::{Outgoing, Sender};
use super::{CallError, ReplyStream, Request, Streaming, Unary, answer};
use crate::context::{self, Context};
use crate::envelope::{self, Meta};
use crate::message::{Durability, Headers, Message, MessageId};
use crate::subject::Subject;
use event_transport::bounds;
use event_transport::error::{Error, Result};

/// The default time limit of a call: 5 s.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The default time limit of a call with a streamed answer, for the whole answer: 60 s.
pub const DEFAULT_STREAM_DEADLINE: Duration = Duration::from_secs(60);

/// A call under construction; `.await` sends the request, and `.stream()` sends a request whose answer is a stream of
/// chunks.
///
/// While this task handles a request, that request's deadline also bounds every call that the task makes, even when
/// [`timeout`](Call::timeout) sets a longer time.
#[must_use = "nothing is sent until it is awaited"]
pub struct Call<'a, T> {
    sender: Sender<'a>,
    request: T,
    within: Option<Duration>,
    headers: Headers,
    context: Option<Context>,
    refused: Option<Error>,
}

impl<'a, T: Request> Call<'a, T> {
    pub(crate) fn new(sender: Sender<'a>, request: T) -> Self {
        Self { sender, request, within: None, headers: Headers::new(), context: None, refused: None }
    }

    /// Sets the time limit of the call, including the whole of a streamed answer; at most
    /// [`LONGEST`](crate::LONGEST). Default [`DEFAULT_DEADLINE`], for streams [`DEFAULT_STREAM_DEADLINE`].
    pub fn timeout(mut self, bound: Duration) -> Self {
        self.within = Some(bound);
        self
    }

    /// Adds a free header; an invalid name or value makes the call fail.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let Err(error) = self.headers.set(name, value) {
            self.refused.get_or_insert(error);
        }
        self
    }

    /// Takes correlation, cause and trace from `context` instead of from the message that this task handles.
    pub fn context(mut self, context: Context) -> Self {
        self.context = Some(context);
        self
    }

    /// Builds the request to send, and the time until its deadline.
    fn outgoing(self, default: Duration) -> (Sender<'a>, Duration, Result<Outgoing>) {
        let now = Instant::now();
        let mut deadline = bounds::later(now, self.within.unwrap_or(default));
        if let Some(inherited) = context::deadline() {
            deadline = deadline.min(inherited);
        }
        let within = deadline.saturating_duration_since(now);
        let sender = self.sender;
        let build = || {
            if let Some(error) = self.refused {
                return Err(error);
            }
            let settings = sender.connection().settings();
            let id = MessageId::now();
            let mut meta = Meta::new(id.clone(), settings.source.clone(), SmolStr::new_static(T::SUBJECT));
            meta.caused_by(self.context.or_else(Context::current).as_ref());
            let context = Context {
                correlation: meta.correlationid.clone().unwrap_or_else(|| id.clone()),
                causation: meta.causationid.clone().unwrap_or_else(|| id.clone()),
                trace: meta.traceparent.unwrap_or_else(context::TraceParent::root),
                tracestate: meta.tracestate.clone(),
            };
            let (content_type, mut headers, payload) =
                envelope::write(&mut meta, &self.request, settings.codec, settings.mode)?;
            headers.add_free(&self.headers)?;
            let message = Message {
                subject: Subject::new(T::SUBJECT)?,
                id,
                key: None,
                content_type,
                headers,
                payload,
                deliver_at: None,
                expires_at: None,
                dedup: false,
                durability: Durability::Default,
            };
            let system = sender.connection().capabilities().name;
            Ok(Outgoing { message, context, deadline, idempotent: T::IDEMPOTENT, system })
        };
        let outgoing = build();
        (sender, within, outgoing)
    }
}

impl<'a, T: Request<Shape = Unary>> IntoFuture for Call<'a, T> {
    type Output = std::result::Result<T::Reply, CallError<T::Error>>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        // Encoded now, so that the future does not own the request.
        let (sender, within, outgoing) = self.outgoing(DEFAULT_DEADLINE);
        Box::pin(async move {
            let failed = |error| CallError::new(error, T::SUBJECT, within);
            let mut answer = sender.send(outgoing.map_err(failed)?).await.map_err(failed)?;
            let frame = answer.next().await.expect("an answer has a first frame").map_err(failed)?;
            match answer::read(&frame)? {
                Some(reply) => Ok(reply),
                None => {
                    let empty = Error::new(crate::ErrorKind::Decode, "the answer is empty");
                    Err(failed(empty))
                }
            }
        })
    }
}

impl<'a, T: Request<Shape = Streaming>> Call<'a, T> {
    /// Sends the request; returns when the first chunk arrives, or with the error that arrives instead of it.
    ///
    /// # Errors
    /// The errors of awaiting a call. Errors after the first chunk arrive through the stream.
    pub async fn stream(self) -> std::result::Result<ReplyStream<T>, CallError<T::Error>> {
        let (sender, within, outgoing) = self.outgoing(DEFAULT_STREAM_DEADLINE);
        let failed = |error| CallError::new(error, T::SUBJECT, within);
        let answer = sender.send(outgoing.map_err(failed)?).await.map_err(failed)?;
        if let Some(error) = answer.failure() {
            return Err(error);
        }
        Ok(ReplyStream::new(answer, within))
    }
}

impl<T: fmt::Debug> fmt::Debug for Call<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("request", &self.request)
            .field("within", &self.within)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}
