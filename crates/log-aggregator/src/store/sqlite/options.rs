//! Settings of the SQLite store of log records.

use std::path::PathBuf;

/// Settings of the SQLite store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory of the day files; created when missing.
    pub dir: PathBuf,
    /// Size limit of a day's file in bytes: when it is reached, appending returns [`ErrorKind::Full`](crate::ErrorKind::Full) until the next
    /// day or until records are deleted. Default: none; only the disk limits the size.
    pub max_day_bytes: Option<u64>,
}
