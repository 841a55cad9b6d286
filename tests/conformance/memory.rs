//! Runs the exam on `memory:NAME`, with a name for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::Result;
use event_conformance::{Fixture, Settings, Storage};

pub(crate) struct Memory;

impl Fixture for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut url = format!("memory:exam-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if let Some(window) = settings.dedup_window {
            url += &format!("?dedup_window={}ms", window.as_millis());
        }
        if settings.few_kept {
            url += "?max_messages=64";
        }
        Ok(Storage::new(url, ()))
    }

    fn program(&self) -> Option<PathBuf> {
        None
    }
}
