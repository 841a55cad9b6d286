//! What SQLite says, in the crate's own words: which file, what happened, what to do.

use std::path::Path;

use sqlite_kit::Lost;

use crate::error::{Error, ErrorKind};

/// Result of a statement; the database turns it into the crate's error where it knows the operation.
pub(super) type Sql<T> = Result<T, sqlx::Error>;

/// Puts an SQLite failure into words.
pub(super) fn explain(error: &sqlx::Error, operation: &'static str, path: &Path) -> Error {
    let (kind, text) = classify(error);
    // Its text only: one failed transaction is told to everybody who took part.
    Error::new(kind, text).during(operation).with("file", path.display()).because(error.to_string())
}

/// The files of the database are no longer where they were opened.
pub(super) fn lost(lost: &Lost, operation: &'static str) -> Error {
    let text = "the database is no longer where it was opened: nothing is stored or delivered until its files (`…`, \
                `…-wal`, `…-shm`) are put back, or all three are taken away and the bus is opened again";
    Error::new(ErrorKind::Corrupt, text).during(operation).because(lost.to_string())
}

/// The transport was closed while or before something was asked of it.
pub(super) fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, "the bus is closed; open it again").during(operation)
}

/// Somebody else owns the message now.
pub(super) fn lease_lost() -> Error {
    Error::new(
        ErrorKind::LeaseLost,
        "the lease ran out or the group was moved, and the message belongs to another consumer now",
    )
    .during("settle")
}

/// A row that this code did not write.
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
            return (ErrorKind::Unavailable, "no reader became free in time; try again");
        }
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
            return (ErrorKind::Closed, "the database connection has ended");
        }
        _ => return (ErrorKind::Unavailable, "the database does not answer"),
    };
    // Extended codes that say more than their primary code.
    match code {
        // IOERR_WRITE and IOERR_SHMSIZE: what a quota, a file size limit or a full disk looks like.
        778 | 4874 => return (ErrorKind::Full, "the disk takes no more; free some space, then try again"),
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
        10 => (ErrorKind::Unavailable, "the disk failed; look into the system log"),
        11 => (ErrorKind::Corrupt, "the database file is damaged; restore it or move it away"),
        26 => (ErrorKind::Corrupt, "the file is not an SQLite database; choose another path or move it away"),
        13 => (ErrorKind::Full, "the disk is full; free some space, then try again"),
        14 => (ErrorKind::Unavailable, "the database file cannot be opened; check the path and its rights"),
        _ => (ErrorKind::Internal, "the database refused a statement"),
    }
}
