//! Runs the exam on `sqlite:PATH`, with a directory for each case.

use std::path::PathBuf;

use event_client::{Error, ErrorKind, Result};
use event_conformance::{Fixture, Settings, Storage};

pub(crate) struct Sqlite;

impl Fixture for Sqlite {
    fn name(&self) -> &str {
        "sqlite"
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        let directory = tempfile::tempdir().map_err(|error| {
            Error::new(ErrorKind::Unavailable, "no directory for the case").because(error)
        })?;
        let mut url = format!("sqlite:{}", directory.path().join("bus.db").display());
        if let Some(window) = settings.dedup_window {
            url += &format!("?dedup_window={}ms", window.as_millis());
        }
        if settings.few_kept {
            url += "?retention_bytes=1m";
        }
        Ok(Storage::new(url, directory))
    }

    fn program(&self) -> Option<PathBuf> {
        Some(std::env::current_exe().expect("a running program has a path"))
    }
}
