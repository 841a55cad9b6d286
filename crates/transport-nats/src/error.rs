//! Converts errors of the NATS client and the server to errors of this crate.

use std::io;

use smol_str::SmolStr;

use super::config::{Config, Login};
use event_transport::error::{Error, ErrorKind};

/// The server denies the use of a subject. It reports this separately, not as the reply to an operation.
#[derive(Clone, Debug)]
pub(super) struct Denied {
    pub(super) subject: SmolStr,
    publish: bool,
}

impl Denied {
    pub(super) fn publish(subject: &str) -> Self {
        Self { subject: subject.into(), publish: true }
    }

    /// Returns whether the denied subject is an inbox, so that replies cannot reach this connection.
    pub(super) fn is_inbox(&self) -> bool {
        !self.publish && self.subject.starts_with("_INBOX.")
    }
}

impl Denied {
    /// Parses `Permissions Violation for Publish to "orders.placed"`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("Permissions Violation for ")?;
        let (what, rest) = rest.split_once('"')?;
        let (subject, _) = rest.split_once('"')?;
        Some(Self { subject: subject.into(), publish: what.starts_with("Publish") })
    }

    pub(super) fn error(&self) -> Error {
        let what = if self.publish { "publish to" } else { "subscribe to" };
        Error::new(
            ErrorKind::Denied,
            format!("the server does not allow this user to {what} the subject; grant the permission"),
        )
        .with("nats_subject", &self.subject)
    }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this connection to the bus has been closed")
}

/// Converts the error of the first connection attempt.
pub(super) fn connect(error: async_nats::ConnectError, config: &Config) -> Error {
    use async_nats::ConnectErrorKind as Kind;
    // Nothing was sent yet: the file has no seed to sign with. The error must not contain the file's content.
    if let (Kind::Authentication, Login::Nkey(path) | Login::Creds(path)) = (error.kind(), &config.login) {
        return Error::new(ErrorKind::Config, "the file has no seed of an nkey that could be used")
            .with("path", path.display());
    }
    let (kind, text) = match error.kind() {
        // A server that refuses a certificate may reset the connection before the reason arrives.
        _ if is_tls(&error) || config.tls.is_some() && is_cut(&error) => {
            (ErrorKind::Unavailable, "TLS with the server failed; check `ca`, `cert` and `key`")
        }
        Kind::AuthorizationViolation | Kind::Authentication => (
            ErrorKind::Denied,
            "the server refused the credentials; check user and password, token, nkey or creds",
        ),
        Kind::ServerParse => (ErrorKind::Config, "the server address in the URL is invalid"),
        Kind::TimedOut => (ErrorKind::Unavailable, "the server did not answer in time"),
        Kind::Dns => (ErrorKind::Unavailable, "the server's name cannot be resolved"),
        _ => (ErrorKind::Unavailable, "no NATS server answers at this address"),
    };
    Error::new(kind, text).because(error)
}

/// Returns whether TLS or a certificate caused the error. The client reports most of these errors as IO errors.
fn is_tls(error: &async_nats::ConnectError) -> bool {
    let by_rustls = |error: &(dyn std::error::Error + 'static)| {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>())
    };
    error.kind() == async_nats::ConnectErrorKind::Tls || causes(error).any(by_rustls)
}

/// Returns whether the server answered and then closed the connection.
fn is_cut(error: &async_nats::ConnectError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let cut = [BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof];
    causes(error)
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| cut.contains(&error.kind())))
}

fn causes(error: &async_nats::ConnectError) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_refusals_are_understood() {
        let denied = Denied::read("Permissions Violation for Publish to \"shop.evt.a\"").unwrap();
        assert_eq!(denied.subject, "shop.evt.a");
        assert_eq!(denied.error().kind(), ErrorKind::Denied);
        assert!(Denied::read("Permissions Violation for Subscription to \"x\" using queue \"q\"").is_some());
        assert!(Denied::read("Stale Connection").is_none());
    }
}
