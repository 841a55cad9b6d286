//! A request type: which service answers it, with what, and how it fails.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
    type Error: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Service and method: `pricing.get-quote`.
    const NAME: &'static str;
    /// Name and version: `pricing.get-quote.v1`, the subject that is served.
    const SUBJECT: &'static str;
    /// Whether asking twice is harmless, so that a retry layer may ask again.
    const IDEMPOTENT: bool;
}
