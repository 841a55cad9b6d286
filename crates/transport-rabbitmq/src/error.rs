//! Converts the AMQP client's errors to this crate's errors.

use lapin::ErrorKind as Amqp;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};

use event_transport::error::{Error, ErrorKind};

/// Converts an error, as far as a caller can act on it.
pub(super) fn amqp(error: lapin::Error) -> Error {
    let (kind, text) = match error.kind() {
        Amqp::ProtocolError(protocol) => {
            let said = protocol.get_message().as_str();
            match protocol.kind() {
                AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) if is_absent(said) => {
                    (ErrorKind::NotFound, "the broker has no such exchange or queue")
                }
                AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                    (ErrorKind::Unavailable, "the queue exists at the broker, but is not running now")
                }
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                    if said.to_ascii_lowercase().contains("login") =>
                {
                    (ErrorKind::Denied, "the broker refused user name and password")
                }
                AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => (
                    ErrorKind::Denied,
                    "the broker refused access; give the user the permission (rabbitmqctl set_permissions)",
                ),
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
                    if said.contains("inequivalent arg") =>
                {
                    (ErrorKind::Config, "it already exists with other settings")
                }
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if said.contains("larger than") => {
                    (ErrorKind::TooLarge, "the message is larger than the broker accepts")
                }
                AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) if said.contains("invalid arg") => (
                    ErrorKind::Unsupported,
                    "the broker does not support a setting; RabbitMQ 3.10 or later is needed",
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("vhost") => (
                    ErrorKind::Denied,
                    "the broker refuses the vhost: it does not exist or the user has no permission there \
                     (rabbitmqctl add_vhost, set_permissions)",
                ),
                AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED) => {
                    (ErrorKind::Unsupported, "the broker cannot do that")
                }
                AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => {
                    (ErrorKind::Unavailable, "the broker is closing connections")
                }
                _ => (ErrorKind::Unavailable, "the broker ended the channel"),
            }
        }
        Amqp::IOError(_) | Amqp::RuntimeShutdownError(_) => {
            (ErrorKind::Unavailable, "the connection to the broker failed")
        }
        Amqp::MissingHeartbeatError => (ErrorKind::Unavailable, "the broker sent no heartbeat"),
        Amqp::InvalidProtocolVersion(_) => (ErrorKind::Unsupported, "the server does not speak AMQP 0.9.1"),
        Amqp::AuthProviderError(_) => (ErrorKind::Denied, "the client cannot authenticate"),
        Amqp::SerialisationError(_) => (ErrorKind::TooLarge, "a message's headers do not fit one frame"),
        _ => (ErrorKind::Unavailable, "the connection to the broker is not open"),
    };
    Error::new(kind, text).because(error)
}

/// Whether the error reports that an exchange or queue does not exist.
pub(super) fn is_missing(error: &lapin::Error) -> bool {
    soft(error, &AMQPSoftError::NOTFOUND)
        && matches!(error.kind(), Amqp::ProtocolError(said) if is_absent(said.get_message().as_str()))
}

/// The broker also reports "not found" for a queue that exists and is down, still starting or without a leader: a
/// caller that took this for a deleted queue would create it again.
fn is_absent(said: &str) -> bool {
    let said = said.strip_prefix("NOT_FOUND - ").unwrap_or(said);
    ["no queue ", "no exchange ", "no binding ", "no previously declared queue"]
        .iter()
        .any(|start| said.starts_with(start))
}

/// Whether another connection holds an exclusive queue.
pub(super) fn is_locked(error: &lapin::Error) -> bool {
    soft(error, &AMQPSoftError::RESOURCELOCKED)
}

/// Whether the same operation may be tried again: the broker could not be reached, or was not ready.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}

fn soft(error: &lapin::Error, which: &AMQPSoftError) -> bool {
    matches!(error.kind(), Amqp::ProtocolError(said) if matches!(said.kind(), AMQPErrorKind::Soft(kind) if kind == which))
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "this connection to the bus has been closed")
}

pub(super) fn timeout(what: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("the broker did not answer in time: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::protocol::AMQPError;

    #[test]
    fn only_what_does_not_exist_is_missing() {
        for (said, kind, missing) in [
            ("NOT_FOUND - no queue 'a' in vhost '/'", ErrorKind::NotFound, true),
            ("NOT_FOUND - no exchange 'a' in vhost '/'", ErrorKind::NotFound, true),
            (
                "NOT_FOUND - queue 'a' in vhost '/' process is stopped by supervisor",
                ErrorKind::Unavailable,
                false,
            ),
            (
                "NOT_FOUND - home node 'rabbit@a' of durable queue 'a' in vhost '/' is down or inaccessible",
                ErrorKind::Unavailable,
                false,
            ),
        ] {
            let error = AMQPError::new(AMQPSoftError::NOTFOUND.into(), said.into());
            let error = lapin::Error::from(Amqp::ProtocolError(error));
            assert_eq!((is_missing(&error), amqp(error).kind()), (missing, kind), "{said}");
        }
    }
}
