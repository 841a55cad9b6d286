//! Canonical status codes: the error codes of replies to requests, the same in every service.
//!
//! The codes and their meanings are gRPC's (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>). On the wire a
//! status is in the headers of a frame: `status` (the name; absent means `OK`), `status-message`
//! (percent-encoded UTF-8, as in gRPC), and `status-details`, the type of the payload: `error` for the
//! request's own error type, `details` for a JSON-like value.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use smol_str::SmolStr;

use crate::error::{Error, ErrorKind, Result};
use crate::message::Headers;

/// Frame header with the code's name.
pub const STATUS: &str = "status";
/// Frame header with the percent-encoded message.
pub const STATUS_MESSAGE: &str = "status-message";
/// Frame header with the type of a failed frame's payload: `error` or `details`.
pub const STATUS_DETAILS: &str = "status-details";

/// Longest message in bytes that is written into a header; it becomes three times as long when every byte is escaped.
const MAX_MESSAGE: usize = 1024;

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $number:literal, $name:literal, $http:literal;)*) => {
        /// A canonical status code.
        ///
        /// | code | number | HTTP |
        /// |---|---|---|
        $(#[doc = concat!("| `", $name, "` | ", stringify!($number), " | ", stringify!($http), " |")])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $code = $number,)*
        }

        impl Code {
            /// Every code, by number.
            pub const ALL: [Self; 17] = [$(Self::$code),*];

            /// The name on the wire: `NOT_FOUND`.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => $name),* }
            }

            /// The HTTP status with which a gateway reports this code.
            pub const fn http(self) -> u16 {
                match self { $(Self::$code => $http),* }
            }
        }
    };
}

codes! {
    /// No error.
    Ok = 0, "OK", 200;
    /// The caller no longer wants the answer.
    Cancelled = 1, "CANCELLED", 499;
    /// An error without further information.
    Unknown = 2, "UNKNOWN", 500;
    /// The request itself is invalid, in any state of the system.
    InvalidArgument = 3, "INVALID_ARGUMENT", 400;
    /// The deadline passed; the service may have completed the operation.
    DeadlineExceeded = 4, "DEADLINE_EXCEEDED", 504;
    /// The requested object does not exist.
    NotFound = 5, "NOT_FOUND", 404;
    /// The object to be created exists already.
    AlreadyExists = 6, "ALREADY_EXISTS", 409;
    /// The caller is authenticated and not allowed to do this.
    PermissionDenied = 7, "PERMISSION_DENIED", 403;
    /// A quota, rate limit or storage is used up.
    ResourceExhausted = 8, "RESOURCE_EXHAUSTED", 429;
    /// The system is not in the state that the operation requires; a repetition does not help.
    FailedPrecondition = 9, "FAILED_PRECONDITION", 400;
    /// The operation conflicts with a concurrent one; repeat it from the start.
    Aborted = 10, "ABORTED", 409;
    /// The operation goes past the end of a valid range.
    OutOfRange = 11, "OUT_OF_RANGE", 400;
    /// The service does not offer this operation.
    Unimplemented = 12, "UNIMPLEMENTED", 501;
    /// A defect of the service.
    Internal = 13, "INTERNAL", 500;
    /// The service is not available at the moment; repeat the request after a pause.
    Unavailable = 14, "UNAVAILABLE", 503;
    /// Data was lost or damaged for good.
    DataLoss = 15, "DATA_LOSS", 500;
    /// The caller has not authenticated itself.
    Unauthenticated = 16, "UNAUTHENTICATED", 401;
}

impl Code {
    /// The code's number in gRPC.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The code that best matches an HTTP status. Several codes share one status, so this is not the inverse of
    /// [`Code::http`]: 400 becomes `INVALID_ARGUMENT`, 409 `ABORTED`, 500 `INTERNAL`.
    pub const fn from_http(status: u16) -> Self {
        match status {
            200..=299 => Self::Ok,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 | 410 => Self::NotFound,
            408 | 504 => Self::DeadlineExceeded,
            409 => Self::Aborted,
            412 | 428 => Self::FailedPrecondition,
            416 => Self::OutOfRange,
            405 | 501 => Self::Unimplemented,
            413 | 429 => Self::ResourceExhausted,
            499 => Self::Cancelled,
            502 | 503 => Self::Unavailable,
            400..=498 => Self::InvalidArgument,
            500..=599 => Self::Internal,
            _ => Self::Unknown,
        }
    }

    /// Whether the service or its environment caused the failure, not the request: such failures open a circuit
    /// breaker, and the same request may succeed when it is repeated.
    pub const fn is_server_fault(self) -> bool {
        matches!(
            self,
            Self::Unknown
                | Self::DeadlineExceeded
                | Self::ResourceExhausted
                | Self::Aborted
                | Self::Internal
                | Self::Unavailable
                | Self::DataLoss
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = Error;

    /// Reads a name or a number.
    fn from_str(text: &str) -> Result<Self> {
        let number = text.parse::<u8>().ok();
        Self::ALL.into_iter().find(|code| code.as_str() == text || number == Some(code.number())).ok_or_else(
            || {
                let text = &text[..text.floor_char_boundary(40)];
                Error::new(ErrorKind::Decode, "not a canonical status code").with("status", text)
            },
        )
    }
}

impl From<ErrorKind> for Code {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Timeout => Self::DeadlineExceeded,
            ErrorKind::Unavailable | ErrorKind::NoResponder | ErrorKind::Closed => Self::Unavailable,
            ErrorKind::Full | ErrorKind::TooLarge => Self::ResourceExhausted,
            ErrorKind::Decode | ErrorKind::UnknownType | ErrorKind::InvalidName => Self::InvalidArgument,
            ErrorKind::Denied => Self::PermissionDenied,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Unsupported => Self::Unimplemented,
            ErrorKind::Corrupt => Self::DataLoss,
            ErrorKind::LeaseLost => Self::Aborted,
            ErrorKind::Remote => Self::Unknown,
            ErrorKind::Config | ErrorKind::Encode | ErrorKind::Internal => Self::Internal,
        }
    }
}

/// A code with a message for people, and details for programs.
///
/// ```
/// use event_transport::status::{Code, Status};
/// let status = Status::not_found("no such sku");
/// assert_eq!(status.to_string(), "NOT_FOUND: no such sku");
/// assert_eq!(status.code.http(), 404);
/// assert_eq!(Code::from_http(503), Code::Unavailable);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// The class of the failure.
    pub code: Code,
    /// Description of the failure, for people; cut to 1 KiB on the wire.
    pub message: SmolStr,
    /// Data about the failure, for programs.
    pub details: Option<serde_json::Value>,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),* $(,)?) => {
        impl Status {$(
            #[doc = concat!("A status with [`Code::", stringify!($code), "`].")]
            pub fn $name(message: impl Into<SmolStr>) -> Self {
                Self::new(Code::$code, message)
            }
        )*}
    };
}

constructors! {
    invalid_argument => InvalidArgument,
    not_found => NotFound,
    already_exists => AlreadyExists,
    permission_denied => PermissionDenied,
    resource_exhausted => ResourceExhausted,
    failed_precondition => FailedPrecondition,
    aborted => Aborted,
    unimplemented => Unimplemented,
    internal => Internal,
    unavailable => Unavailable,
    unauthenticated => Unauthenticated,
    deadline_exceeded => DeadlineExceeded,
}

impl Status {
    /// A status without details.
    pub fn new(code: Code, message: impl Into<SmolStr>) -> Self {
        Self { code, message: message.into(), details: None }
    }

    /// Adds data for programs.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<serde_json::Value>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// Writes code and message into a frame's headers.
    pub fn write(code: Code, message: &str, headers: &mut Headers) {
        const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');
        let set = |headers: &mut Headers, name, value: &str| {
            headers.set(name, value).expect("a short value without control characters");
        };
        set(headers, STATUS, code.as_str());
        if !message.is_empty() {
            let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
            set(headers, STATUS_MESSAGE, &utf8_percent_encode(message, ESCAPED).to_string());
        }
    }

    /// Reads code and message from a frame's headers; `None` when the status is absent or `OK`.
    pub fn read(headers: &Headers) -> Option<Self> {
        // A code that a newer version added is still an error.
        let code = headers.get(STATUS)?.parse().unwrap_or(Code::Unknown);
        if code == Code::Ok {
            return None;
        }
        let message = percent_decode_str(headers.get(STATUS_MESSAGE).unwrap_or_default()).decode_utf8_lossy();
        Some(Self::new(code, message))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.message.is_empty() { self.code.fmt(f) } else { write!(f, "{}: {}", self.code, self.message) }
    }
}

impl std::error::Error for Status {}

impl From<&Error> for Status {
    fn from(error: &Error) -> Self {
        Self::new(error.kind().into(), smol_str::format_smolstr!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_and_names_are_grpc_s() {
        for (number, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(code.number()), number);
            assert_eq!(code.as_str().parse::<Code>().unwrap(), code);
            assert_eq!(number.to_string().parse::<Code>().unwrap(), code);
        }
        assert!("17".parse::<Code>().is_err() && "not_found".parse::<Code>().is_err());
    }

    #[test]
    fn http_there_and_back_keeps_the_class() {
        for code in Code::ALL {
            let back = Code::from_http(code.http());
            assert_eq!(back.http(), code.http(), "{code}");
        }
        assert_eq!(Code::from_http(404), Code::NotFound);
        assert_eq!(Code::from_http(418), Code::InvalidArgument);
        assert_eq!(Code::from_http(302), Code::Unknown);
    }

    proptest! {
        #[test]
        fn any_message_survives_a_header(message in "\\PC*|.{0,50}|[%\\x00-\\x1f]{0,2000}") {
            let mut headers = Headers::new();
            Status::write(Code::Aborted, &message, &mut headers);
            let read = Status::read(&headers).unwrap();
            prop_assert_eq!(read.code, Code::Aborted);
            prop_assert_eq!(read.message.as_str(), &message[..message.floor_char_boundary(MAX_MESSAGE)]);
        }
    }
}
