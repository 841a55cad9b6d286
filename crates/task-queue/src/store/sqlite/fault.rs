//! Turns what SQLite says into the crate's error: what kind it is and what to do.

use crate::{Error, ErrorKind};

/// Wraps a driver error with what was being done.
pub(crate) fn db(context: &str, error: sqlx::Error) -> Error {
    // The primary result code is the low byte of the extended one.
    let code = match &error {
        sqlx::Error::Database(inner) => {
            inner.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff)
        }
        _ => None,
    };
    let (kind, advice) = match code {
        Some(5 | 6) => (ErrorKind::Unavailable, "another process holds the write lock too long"),
        Some(8) => (ErrorKind::ReadOnly, "the file or its directory may not be written"),
        Some(10) => (ErrorKind::Unavailable, "the disk reports an error"),
        Some(11) => (ErrorKind::Corrupt, "the file is damaged; restore a copy or move it away to start anew"),
        Some(13) => (ErrorKind::Unavailable, "the disk is full; free some space, nothing stored is lost"),
        Some(14) => (ErrorKind::Unavailable, "the file cannot be opened; see its path and permissions"),
        Some(26) => {
            (ErrorKind::Corrupt, "the file is not an sqlite database; give another path or move it away")
        }
        _ => (ErrorKind::Unavailable, ""),
    };
    let text = if advice.is_empty() { context.to_owned() } else { format!("{context}: {advice}") };
    Error::new(kind, text).with(error)
}
