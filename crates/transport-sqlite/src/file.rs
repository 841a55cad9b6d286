//! The database file at its path: checks that it is still the file that was opened, and names it in errors.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sqlite_kit::{Identity, Lost};

use super::error;
use event_transport::error::Error;

/// An open database file.
#[derive(Debug)]
pub(super) struct DatabaseFile {
    path: PathBuf,
    /// The identity of the files at `path` when they were opened.
    files: Identity,
    /// Whether the last check did not find these files.
    lost: AtomicBool,
}

impl DatabaseFile {
    /// Remembers the identity of the files at `path`.
    pub(super) fn at(path: PathBuf) -> io::Result<Self> {
        let files = Identity::of(&path)?;
        Ok(Self { path, files, lost: AtomicBool::new(false) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the files that were opened are deleted.
    pub(super) fn is_gone(&self) -> bool {
        self.files.is_gone()
    }

    /// Converts an SQLite error to this crate's error.
    pub(super) fn explain(&self, error: &sqlx::Error, operation: &'static str) -> Error {
        error::explain(error, operation, &self.path)
    }

    /// Checks whether the files are still at the path where they were opened. It is called between a commit and its
    /// confirmation. It logs when the files are missing and when they are back.
    pub(super) fn intact(&self) -> Result<(), Lost> {
        let looked = self.files.check();
        let was_lost = self.lost.swap(looked.is_err(), Ordering::AcqRel);
        match &looked {
            Err(lost) if !was_lost => tracing::error!(
                file = %self.path.display(), error = %lost,
                "the database files are no longer at their path: nothing is stored or delivered"
            ),
            Ok(()) if was_lost => {
                tracing::info!(file = %self.path.display(), "the database files are back at their path");
            }
            _ => {}
        }
        looked
    }

    /// Like [`DatabaseFile::intact`], but checks only if the last check did not find the files.
    pub(super) fn still_intact(&self) -> Result<(), Lost> {
        if self.lost.load(Ordering::Acquire) { self.intact() } else { Ok(()) }
    }
}
