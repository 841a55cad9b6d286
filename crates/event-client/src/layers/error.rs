//! Converts the error of any layer to the error of this crate.

use event_transport::{Error, ErrorKind};

/// Converts the error of any layer; an [`Error`] of this crate is returned unchanged.
pub(crate) fn of_layer(error: impl Into<tower::BoxError>) -> Error {
    let error = match error.into().downcast::<Error>() {
        Ok(ours) => return *ours,
        Err(error) => error,
    };
    let kind = if error.is::<tower::timeout::error::Elapsed>() {
        ErrorKind::Timeout
    } else {
        ErrorKind::Unavailable
    };
    Error::new(kind, "a layer refused the call").because(error)
}
