//! Requests to JetStream's API: JSON in both directions, a deadline for each, and errors classified by their code.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::connection::Connection;
use crate::bounds;
use crate::error::{Error, ErrorKind, Result};

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

/// The error of a reply, if there is one.
#[derive(Deserialize)]
struct Reply {
    error: Option<ApiError>,
}

impl Connection {
    /// Sends a request to JetStream's API. `subject` omits the prefix `$JS.API.`.
    pub(super) async fn api<T: DeserializeOwned>(
        &self,
        subject: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        let subject = format!("$JS.API.{subject}");
        let body = serde_json::to_vec(body).expect("plain data").into();
        let bytes = self.ask(subject, body, self.config.request_timeout).await?;
        let reply: Reply = serde_json::from_slice(&bytes).map_err(odd)?;
        match reply.error {
            Some(error) => Err(Failure::Api(error)),
            None => serde_json::from_slice(&bytes).map_err(odd),
        }
    }

    /// Sends a request over core NATS with a deadline.
    pub(super) async fn ask(&self, subject: String, body: Bytes, within: Duration) -> Result<Bytes, Failure> {
        self.ask_with_headers(subject, async_nats::HeaderMap::new(), body, within).await
    }

    pub(super) async fn ask_with_headers(
        &self,
        subject: String,
        headers: async_nats::HeaderMap,
        body: Bytes,
        within: Duration,
    ) -> Result<Bytes, Failure> {
        if self.closed.is_cancelled() {
            return Err(Failure::Other(super::error::closed()));
        }
        let mut denied = self.denied.subscribe();
        let mut request = async_nats::Request::new().payload(body).timeout(Some(within));
        if !headers.is_empty() {
            request = request.headers(headers);
        }
        let mut answer = std::pin::pin!(self.client.send_request(subject.clone(), request));
        loop {
            tokio::select! {
                answer = &mut answer => return match answer {
                    Ok(message) => Ok(message.payload),
                    Err(error) if error.kind() == async_nats::RequestErrorKind::NoResponders => {
                        Err(Failure::NoResponder)
                    }
                    Err(error) if error.kind() == async_nats::RequestErrorKind::TimedOut => {
                        Err(Failure::Other(self.no_answer(&subject, within)))
                    }
                    Err(error) => Err(Failure::Other(
                        Error::new(ErrorKind::Unavailable, "the request did not reach the server").because(error),
                    )),
                },
                refused = denied.recv() => if let Ok(refused) = refused
                    && (refused.subject == subject || refused.is_inbox())
                {
                    return Err(Failure::Other(refused.error()));
                },
                () = self.closed.cancelled() => return Err(Failure::Other(super::error::closed())),
            }
        }
    }
}

fn odd(error: serde_json::Error) -> Failure {
    Failure::Other(
        Error::new(ErrorKind::Unsupported, "the reply of JetStream could not be parsed").because(error),
    )
}

/// Converts a duration to JetStream's unit, nanoseconds.
pub(super) fn nanos(duration: Duration) -> u64 {
    bounds::signed_nanos(duration).unsigned_abs()
}
