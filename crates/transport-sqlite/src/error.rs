//! Converts SQLite errors to this crate's errors: the file, the failure and the remedy.

use std::path::Path;

use sqlite_kit::Lost;

use event_transport::error::{Error, ErrorKind};

/// Result of a statement. [`explain`] converts its error to this crate's error where the operation is known.
pub(super) type Sql<T> = Result<T, sqlx::Error>;

/// Converts an SQLite error to this crate's error.
pub(super) fn explain(error: &sqlx::Error, operation: &'static str, path: &Path) -> Error {
    let (kind, text) = classify(error);
    // Only the text of the cause, because the error of one failed transaction is sent to every caller in it.
    Error::new(kind, text).during(operation).with("file", path.display()).because(error.to_string())
}

/// The error when the database files are no longer at the path where they were opened.
pub(super) fn lost(lost: &Lost, operation: &'static str) -> Error {
    let text = "the database files are no longer at their path: nothing is stored or delivered until the files (`…`, \
                `…-wal`, `…-shm`) are put back, or all three are removed and the bus is opened again";
    Error::new(ErrorKind::Corrupt, text).during(operation).because(lost.to_string())
}

/// The error when the transport was closed before or during an operation.
pub(super) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, "the bus is closed; open it again").during(operation)
}

/// The error for a row that this library did not write.
pub(super) fn damaged(what: &'static str) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

fn classify(error: &sqlx::Error) -> (ErrorKind, &'static str) {
    let code = match error {
        sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or(0),
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
            return (ErrorKind::Corrupt, "the database holds a row that cannot be read");
        }
        sqlx::Error::PoolTimedOut => {
            return (ErrorKind::Unavailable, "no reader connection became free in time; try again");
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            return (ErrorKind::Closed, "the database connection has ended");
        }
        _ => return (ErrorKind::Unavailable, "the database does not respond"),
    };
    // Extended codes that are more precise than their primary code.
    match code {
        // IOERR_WRITE and IOERR_SHMSIZE: SQLite reports them for a quota, a file size limit or a full disk.
        778 | 4874 => return (ErrorKind::Full, "the disk or quota is full; free some space, then try again"),
        _ => {}
    }
    match code & 0xff {
        5 | 6 => (
            ErrorKind::Unavailable,
            "the database is locked by another program; end it or raise `busy_timeout`",
        ),
        3 | 8 | 23 => {
            (ErrorKind::Denied, "the database may not be written; check the file's and folder's rights")
        }
        10 => (ErrorKind::Unavailable, "the disk reported an error; check the system log"),
        11 => (ErrorKind::Corrupt, "the database file is damaged; restore it or move it away"),
        26 => (ErrorKind::Corrupt, "the file is not an SQLite database; choose another path or move it away"),
        13 => (ErrorKind::Full, "the disk is full; free some space, then try again"),
        14 => (ErrorKind::Unavailable, "the database file cannot be opened; check the path and its rights"),
        _ => (ErrorKind::Internal, "the database refused a statement"),
    }
}
