//! The fixed values of the shared events, of which the golden samples are made.

use event_client::Event;
use std::fmt;

/// A fixed value of an event type, the same in every run.
pub trait Sample: Event + PartialEq + fmt::Debug {
    /// Returns the value.
    fn sample() -> Self;
}
