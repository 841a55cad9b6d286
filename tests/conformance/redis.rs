//! `redis://` takes the exam on a real server that all cases share, with a namespace for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::Result;
use event_conformance::{Fixture, Settings, Storage};

pub(crate) struct Redis {
    pub(crate) name: &'static str,
    /// The shared server's URL.
    pub(crate) url: String,
}

impl Fixture for Redis {
    fn name(&self) -> &str {
        self.name
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut url = format!("{}?namespace=exam-{}", self.url, NEXT.fetch_add(1, Ordering::Relaxed));
        if let Some(window) = settings.dedup_window {
            url += &format!("&dedup_window={}ms", window.as_millis());
        }
        Ok(Storage::new(url, ()))
    }

    fn program(&self) -> Option<PathBuf> {
        Some(std::env::current_exe().expect("a running program has a path"))
    }
}
