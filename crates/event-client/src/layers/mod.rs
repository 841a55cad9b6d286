//! Tower layers for handlers and requests.

use crate::error::{Error, ErrorKind};

/// Any layer's error as ours; our own come back unchanged.
pub(crate) fn into_error(error: impl Into<tower::BoxError>) -> Error {
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
