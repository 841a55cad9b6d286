//! Runs the exam on `nats://` with real servers of both generations, with a namespace for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::Result;
use event_conformance::{Fixture, Settings, Storage};
use test_servers::Generation;

use crate::servers::{own_server, wait};

pub(crate) struct Nats(pub(crate) Generation);

impl Fixture for Nats {
    fn name(&self) -> &str {
        match self.0 {
            Generation::Old => "nats",
            Generation::New => "nats-new",
        }
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mut options = format!("?namespace=exam-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        if self.0 == Generation::New {
            // With this option publishes share atomic batches; the older generation runs the exam without
            // them.
            options += "&sync=always";
        }
        if let Some(window) = settings.dedup_window {
            options += &format!("&dedup_window={}ms", window.as_millis());
        }
        if settings.few_kept {
            options += "&max_bytes=4194304";
        }
        if settings.own_server {
            let start = test_servers::Nats::options().generation(self.0).start();
            return own_server(start, |server| server.url() + &options);
        }
        Ok(Storage::new(wait(test_servers::Nats::shared(self.0)).url() + &options, ()))
    }

    fn program(&self) -> Option<PathBuf> {
        Some(std::env::current_exe().expect("a running program has a path"))
    }

    fn has_servers(&self) -> bool {
        true
    }
}
