//! Converts errors of the Redis client and server to this crate's errors: what happened and what to do.

use redis::{ErrorKind as RedisKind, RedisError, ServerErrorKind, Value};

use event_transport::error::{Error, ErrorKind};

/// The way in which a command failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command was not sent.
    Unsent(Error),
    /// The connection was lost or too slow: the command may or may not have run.
    Unknown(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Unsent(error) | Failure::Unknown(error) => error,
        }
    }
}

/// Converts an error of the Redis client.
pub(super) fn explain(error: &RedisError) -> Error {
    let text = error.to_string();
    let (kind, what) = match error.kind() {
        RedisKind::AuthenticationFailed => {
            (ErrorKind::Denied, "the server refuses these credentials; check user and password")
        }
        RedisKind::InvalidClientConfig => {
            (ErrorKind::Config, "the connection settings are invalid; check the URL")
        }
        RedisKind::MasterNameNotFoundBySentinel => {
            (ErrorKind::Unavailable, "the sentinels monitor no master of this name")
        }
        RedisKind::Server(_) | RedisKind::Extension => {
            return server(error.code().unwrap_or_default(), error.detail().unwrap_or_default());
        }
        RedisKind::Parse | RedisKind::UnexpectedReturnType => {
            (ErrorKind::Corrupt, "the server sent a reply that this library cannot interpret")
        }
        _ if error.is_timeout() => (ErrorKind::Timeout, "the server did not answer in time"),
        _ => (ErrorKind::Unavailable, "the server cannot be reached"),
    };
    Error::new(kind, what).because(text)
}

/// Converts an error reply of the server.
pub(super) fn server(code: &str, detail: &str) -> Error {
    let said = format!("{code} {detail}");
    let (kind, what) = match code {
        "WRONGPASS" | "NOAUTH" => {
            (ErrorKind::Denied, "the server refuses these credentials; check user and password")
        }
        "NOPERM" => (
            ErrorKind::Denied,
            "the user's ACL does not allow this; grant the keys `NAMESPACE:*`, the channels `&NAMESPACE*` and the commands that the documentation lists",
        ),
        "OOM" => (ErrorKind::Full, "the server's memory is full; raise `maxmemory` or shorten retention"),
        "MISCONF" => (ErrorKind::Full, "the server cannot write to its disk and refuses writes; see its log"),
        "NOSCRIPT" | "LOADING" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN" | "BUSY" => {
            (ErrorKind::Unavailable, "the server is not ready")
        }
        "READONLY" => (ErrorKind::Unavailable, "the server is a replica; the master has moved"),
        "NOREPLICAS" => (ErrorKind::Unavailable, "the server has too few replicas to take a write"),
        "NOGROUP" | "UNBLOCKED" => (ErrorKind::NotFound, "the group does not exist in the server"),
        "WRONGTYPE" => (
            ErrorKind::Config,
            "a key of this namespace holds a value of another type; choose another `namespace`",
        ),
        _ if detail.contains("NOGROUP") => (ErrorKind::NotFound, "the group does not exist in the server"),
        _ if detail.contains("NOPERM") || detail.contains("can't run this command") => {
            (ErrorKind::Denied, "the user's ACL does not allow this inside a script")
        }
        _ if detail.contains("OOM") => {
            (ErrorKind::Full, "the server's memory is full; raise `maxmemory` or shorten retention")
        }
        _ => (ErrorKind::Internal, "the server refused a command"),
    };
    Error::new(kind, what).because(said)
}

/// Returns the reply, or the error if it is an error reply.
pub(super) fn reply(value: Value) -> Result<Value, Error> {
    match value {
        Value::ServerError(error) => Err(server(code(&error), error.details().unwrap_or_default())),
        value => Ok(value),
    }
}

pub(super) fn code(error: &redis::ServerError) -> &str {
    match error.kind() {
        // The client's name for an ordinary `ERR`.
        Some(ServerErrorKind::ResponseError) => "ERR",
        _ => error.code(),
    }
}

/// Whether the server or its role changed: a new connection may reach a better one.
pub(super) fn is_misplaced(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if matches!(code(error), "READONLY" | "MASTERDOWN" | "LOADING" | "NOAUTH"))
}

pub(super) fn is_code(value: &Value, wanted: &str) -> bool {
    matches!(value, Value::ServerError(error) if code(error) == wanted || error.details().is_some_and(|text| text.contains(wanted)))
}

/// The error of an operation on a closed bus, also if the bus was closed during the operation.
pub(super) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the bus is closed; open it again")
}

/// The error for a reply that the server should never send; `what` names the expected value.
pub(super) fn odd(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, "the server sent a reply that this library cannot interpret")
        .with("reply", what)
}
