//! Requests: a question that one member of a service answers, at once or in several chunks.
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
mod stream;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use answer::Answer;
pub use call::{Call, DEFAULT_DEADLINE, DEFAULT_STREAM_DEADLINE};
pub(crate) use client::Door;
pub use client::{BoxCall, Client, Outgoing};
pub use error::CallError;
#[cfg(feature = "nats")]
pub(crate) use health::is_health;
pub use health::{HEALTH_DEADLINE, ServiceHealth};
pub use stream::ReplyStream;

use crate::status::Code;

/// A question that one member of a service answers. Implemented by `#[derive(Request)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a request",
    label = "needs `#[derive(Request)]`",
    note = "write #[derive(Request, Serialize, Deserialize)] and #[request(name = \"pricing.get-quote\", reply = Quote)]"
)]
pub trait Request: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The answer, or one chunk of it when the answer is a stream.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// The error that the service answers with, beside the canonical status codes.
    type Error: ReplyError;
    /// One answer or a stream of chunks.
    type Shape: Shape;
    /// Service and method: `pricing.get-quote`.
    const NAME: &'static str;
    /// Name and version: `pricing.get-quote.v1`, the subject that is served.
    const SUBJECT: &'static str;
    /// Whether asking twice is harmless, so that a retry layer may ask again.
    const IDEMPOTENT: bool;
}

/// An error of a request's own that travels to the caller as a value.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that an answer can carry",
    label = "needs `impl ReplyError for {Self} {{}}`",
    note = "it also needs std::error::Error, Serialize and Deserialize; \
            the method `code` says which canonical status it stands for"
)]
pub trait ReplyError: std::error::Error + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The canonical code for gateways, metrics and layers. Default `FAILED_PRECONDITION`: the service works, and
    /// asking again does not help.
    fn code(&self) -> Code {
        Code::FailedPrecondition
    }
}

/// The error type of a request that declares none: nothing but a [`Status`](crate::status::Status) can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoError {}

impl fmt::Display for NoError {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for NoError {}
impl ReplyError for NoError {}

/// How an answer comes.
pub trait Shape: sealed::Sealed + Send + Sync + 'static {
    /// What a handler returns when all went well, for replies of type `R`.
    type Returns<R>;

    /// The reply in the last frame, if there is one.
    #[doc(hidden)]
    fn last<R>(returned: Self::Returns<R>) -> Option<R>;
}

/// One answer.
#[derive(Clone, Copy, Debug)]
pub enum Unary {}

/// Chunks sent through a [`ReplySink`](crate::service::ReplySink), then an end or an error.
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
