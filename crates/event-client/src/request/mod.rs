//! Requests: one member of a service answers a request, with one reply or with several chunks.
//!
//! ```no_run
//! use std::time::Duration;
//! use event_client::request::{CallError, ReplyError};
//! use event_client::service::{Req, Service};
//! use event_client::status::Code;
//! use event_client::{Bus, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Request, Serialize, Deserialize)]
//! #[request(name = "pricing.get-quote", reply = Quote, error = QuoteError, idempotent)]
//! struct GetQuote { sku: String }
//!
//! #[derive(Serialize, Deserialize)]
//! struct Quote { cents: i64 }
//!
//! #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
//! #[error("no such sku")]
//! struct QuoteError;
//! impl ReplyError for QuoteError {
//!     fn code(&self) -> Code { Code::NotFound }
//! }
//!
//! async fn quote(Req(asked): Req<GetQuote>) -> Result<Quote, QuoteError> {
//!     if asked.sku == "tea" { Ok(Quote { cents: 250 }) } else { Err(QuoteError) }
//! }
//!
//! # async fn doc(bus: Bus) -> Result<(), Box<dyn std::error::Error>> {
//! let pricing = Service::new("pricing").bus(bus.clone()).reply(quote).start().await?;
//!
//! let asked = bus.request(GetQuote { sku: "tea".into() }).timeout(Duration::from_millis(800)).await;
//! match asked {
//!     Ok(quote) => println!("{}", quote.cents),
//!     Err(CallError::Remote(QuoteError)) => println!("not sold here"),
//!     Err(error) => println!("{error} ({})", error.code()),
//! }
//! # Ok(()) }
//! ```

mod answer;
mod call;
mod client;
mod error;
pub(crate) mod health;
mod send;
mod stream;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use answer::Answer;
pub use call::{Call, DEFAULT_DEADLINE, DEFAULT_STREAM_DEADLINE};
pub use client::Client;
pub use error::CallError;
pub use health::{HEALTH_DEADLINE, ServiceHealth};
pub(crate) use send::Sender;
pub use send::{BoxCall, Outgoing};
pub use stream::ReplyStream;

use crate::status::Code;

/// A request that one member of a service answers. Implemented by `#[derive(Request)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a request",
    label = "needs `#[derive(Request)]`",
    note = "write #[derive(Request, Serialize, Deserialize)] and #[request(name = \"pricing.get-quote\", reply = Quote)]"
)]
pub trait Request: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The reply, or one chunk of it when the answer is a stream.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// The error that the service may return in addition to the canonical status codes.
    type Error: ReplyError;
    /// The shape of the answer: one reply or a stream of chunks.
    type Shape: Shape;
    /// The service and the method: `pricing.get-quote`.
    const NAME: &'static str;
    /// The name and the version: `pricing.get-quote.v1`. This is the subject that is served.
    const SUBJECT: &'static str;
    /// Whether repeating the request is harmless, so that a retry layer may send it again.
    const IDEMPOTENT: bool;
}

/// A request's own error type, whose values are sent to the caller.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that an answer can carry",
    label = "needs `impl ReplyError for {Self} {{}}`",
    note = "it also needs std::error::Error, Serialize and Deserialize; \
            the method `code` returns the canonical status code of the error"
)]
pub trait ReplyError: std::error::Error + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Returns the canonical code for gateways, metrics and layers. Default `FAILED_PRECONDITION`: the service works,
    /// and sending the request again does not help.
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }
}

/// The error type of a request that declares none: the service can fail only with a
/// [`Status`](crate::status::Status).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoError {}

impl fmt::Display for NoError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for NoError {}
impl ReplyError for NoError {}

/// The shape of an answer: one reply or a stream of chunks.
pub trait Shape: sealed::Sealed + Send + Sync + 'static {
    /// The type that a handler returns on success, for replies of type `R`.
    type Returns<R>;

    /// Returns the reply in the last frame, if there is one.
    #[doc(hidden)]
    fn last<R>(returned: Self::Returns<R>) -> Option<R>;
}

/// One reply.
#[derive(Clone, Copy, Debug)]
pub enum Unary {}

/// Chunks sent through a [`ReplySink`](crate::service::ReplySink), then the end of the stream or an error.
#[derive(Clone, Copy, Debug)]
pub enum Streaming {}

impl Shape for Unary {
    type Returns<R> = R;

    fn last<R>(returned: R) -> Option<R> {
        Some(returned)
    }
}

impl Shape for Streaming {
    type Returns<R> = ();

    fn last<R>((): ()) -> Option<R> {
        None
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Unary {}
    impl Sealed for super::Streaming {}
}
