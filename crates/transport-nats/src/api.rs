//! Errors of JetStream's API, classified by their code, and the API's unit of time.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;

use event_transport::bounds;
use event_transport::error::{Error, ErrorKind};

/// The reason why a request failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// JetStream returned an error.
    Api(ApiError),
    /// No responder serves JetStream's API: JetStream is disabled, or not ready yet after a restart.
    NoResponder,
    /// Any other error.
    Other(Error),
}

/// JetStream's error object. Codes: <https://github.com/nats-io/nats-server/blob/main/server/errors.json>.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ApiError {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) err_code: u32,
    #[serde(default)]
    pub(super) description: String,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.description, self.err_code)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Other(error) => error,
            Failure::NoResponder => {
                Error::new(ErrorKind::Unavailable, "JetStream does not answer at the moment")
            }
            Failure::Api(error) => error.into(),
        }
    }
}

impl From<ApiError> for Error {
    fn from(error: ApiError) -> Self {
        let kind = match (error.err_code, error.code) {
            (10076 | 10039 | 10035, _) => ErrorKind::Unsupported,
            // Limits of the account, the server or the stream are reached.
            (10002 | 10023 | 10028 | 10047 | 10077 | 10122 | 10026 | 10027, _) => ErrorKind::Full,
            (10054, _) => ErrorKind::TooLarge,
            (10052 | 10065 | 10058 | 10025 | 10012 | 10013 | 10074, _) => ErrorKind::Config,
            (_, 404) => ErrorKind::NotFound,
            (_, 400) => ErrorKind::Config,
            (_, 403) => ErrorKind::Denied,
            _ => ErrorKind::Unavailable,
        };
        Error::new(kind, format!("JetStream refused: {error}"))
    }
}

/// Converts the error of a reply that could not be parsed.
pub(super) fn unreadable(error: serde_json::Error) -> Failure {
    Failure::Other(
        Error::new(ErrorKind::Unsupported, "the reply of JetStream could not be parsed").because(error),
    )
}

/// Converts a duration to JetStream's unit, nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    bounds::signed_nanos(duration).unsigned_abs()
}
