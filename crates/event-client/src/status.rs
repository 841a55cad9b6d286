//! Canonical status codes: how the answer to a request says what went wrong, the same in every service.
//!
//! The set and its meaning are gRPC's (<https://grpc.github.io/grpc/core/md_doc_statuscodes.html>). On the wire a
//! status travels in the headers of a frame: `status` (the name; absent means `OK`), `status-message`
//! (percent-encoded UTF-8, as in gRPC), and `status-details`, which says what the payload is: `error` for the
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
/// Frame header that says what the payload of a failed frame is.
pub const STATUS_DETAILS: &str = "status-details";

/// Longest message in bytes that travels in a header; three times that when every byte is escaped.
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

            /// The HTTP status that a gateway answers with.
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
    /// An error that says nothing about itself.
    Unknown = 2, "UNKNOWN", 500;
    /// The request itself is wrong, whatever the state of the system.
    InvalidArgument = 3, "INVALID_ARGUMENT", 400;
    /// Time ran out; the work may have been done.
    DeadlineExceeded = 4, "DEADLINE_EXCEEDED", 504;
    /// What was asked for does not exist.
    NotFound = 5, "NOT_FOUND", 404;
    /// What was to be made exists already.
    AlreadyExists = 6, "ALREADY_EXISTS", 409;
    /// The caller is known and may not do this.
    PermissionDenied = 7, "PERMISSION_DENIED", 403;
    /// A quota, rate or space is used up.
    ResourceExhausted = 8, "RESOURCE_EXHAUSTED", 429;
    /// The system is not in the state that this needs; repeating does not help.
    FailedPrecondition = 9, "FAILED_PRECONDITION", 400;
    /// A conflict with somebody else's work; repeat from the start.
    Aborted = 10, "ABORTED", 409;
    /// Past the end of a valid range.
    OutOfRange = 11, "OUT_OF_RANGE", 400;
    /// Not offered here.
    Unimplemented = 12, "UNIMPLEMENTED", 501;
    /// A defect of the service.
    Internal = 13, "INTERNAL", 500;
    /// Not available just now; repeat after a while.
    Unavailable = 14, "UNAVAILABLE", 503;
    /// Data was lost or damaged for good.
    DataLoss = 15, "DATA_LOSS", 500;
    /// The caller has not proved who it is.
    Unauthenticated = 16, "UNAUTHENTICATED", 401;
}

impl Code {
    /// The code's number, as gRPC counts.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The code that best stands for an HTTP status. Several codes share one status, so this does not always lead
    /// back to where [`Code::http`] started: 400 is `INVALID_ARGUMENT`, 409 `ABORTED`, 500 `INTERNAL`.
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

    /// Whether the fault lies with the service or its surroundings rather than with the request: such failures
    /// open a circuit breaker, and a repeat of the same request may succeed.
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
/// use event_client::status::{Code, Status};
/// let status = Status::not_found("no such sku");
/// assert_eq!(status.to_string(), "NOT_FOUND: no such sku");
/// assert_eq!(status.code.http(), 404);
/// assert_eq!(Code::from_http(503), Code::Unavailable);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What kind of failure.
    pub code: Code,
    /// What happened, for people; cut to 1 KiB on the wire.
    pub message: SmolStr,
    /// Facts for programs.
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

    /// Adds facts for programs.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<serde_json::Value>) -> Self {
        self.details = Some(details.into());
        self
    }

    /// Writes code and message into a frame's headers.
    pub(crate) fn write(code: Code, message: &str, headers: &mut Headers) {
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

    /// Reads code and message from a frame's headers; `None` when the frame says nothing is wrong.
    pub(crate) fn read(headers: &Headers) -> Option<Self> {
        // A code from the future is still an error.
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
