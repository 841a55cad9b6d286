//! The messages that a handler receives: the subjects of events, or one request.

use smol_str::SmolStr;

use crate::subject::Pattern;

/// A request that a handler answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The subject: `pricing.get-quote.v1`.
    pub subject: &'static str,
    /// Whether repeating the request is harmless.
    pub idempotent: bool,
}

/// The name of a handler and the subjects that it receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The handler's name within its service; part of the group's name.
    pub name: SmolStr,
    /// The subjects.
    pub filters: Vec<Pattern>,
}
