//! Converts SQLite errors into the crate's error, with a kind and advice.

use crate::{Error, ErrorKind};

/// Wraps a driver error with the operation that failed.
pub(crate) fn db(context: &str, error: sqlx::Error) -> Error {
    let (kind, advice) = match code(&error) {
        Some(5 | 6) => (ErrorKind::Unavailable, "another process holds the write lock too long"),
        Some(8) => (ErrorKind::ReadOnly, "the file or its directory may not be written"),
        Some(10) => (ErrorKind::Unavailable, "the disk reports an error"),
        Some(11) => {
            (ErrorKind::Corrupt, "the file is damaged; restore a copy, or move it away to start empty")
        }
        Some(13) => (ErrorKind::Unavailable, "the disk is full; free some space (no stored data is lost)"),
        Some(18..=20 | 25) => (ErrorKind::Refused, "the store cannot keep this record"),
        Some(14) => (ErrorKind::Unavailable, "the file cannot be opened; check its path and permissions"),
        Some(26) => {
            (ErrorKind::Corrupt, "the file is not an sqlite database; give another path or move it away")
        }
        _ if is_refusal(&error) => (ErrorKind::Refused, "the record contains a text that is not json"),
        _ => (ErrorKind::Unavailable, ""),
    };
    let text = if advice.is_empty() { context.to_owned() } else { format!("{context}: {advice}") };
    Error::new(kind, text).because(error)
}

/// The primary result code: the low byte of the extended one.
fn code(error: &sqlx::Error) -> Option<u32> {
    let code = error.as_database_error()?.code()?;
    code.parse::<u32>().ok().map(|code| code & 0xff)
}

/// Whether the only reason is another connection's lock.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    matches!(code(error), Some(5 | 6))
}

/// Whether SQLite refused the values of one row: too large, of another type, against a constraint, or not JSON. Then
/// the statement has changed nothing, and its transaction continues.
pub(super) fn is_refusal(error: &sqlx::Error) -> bool {
    match code(error) {
        Some(18..=20 | 25) => true,
        Some(1) => error.as_database_error().is_some_and(|error| error.message().contains("malformed JSON")),
        _ => false,
    }
}
