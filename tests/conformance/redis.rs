//! Runs the exam on `redis://` with a real server that all cases share, with a namespace for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::Result;
use event_conformance::{Fixture, Settings, Storage};
use test_servers::Generation;

use crate::servers::{own_server, wait};

/// The fixture for one generation of the server.
pub(crate) struct Redis(pub(crate) Generation);

impl Fixture for Redis {
    fn name(&self) -> &str {
        match self.0 {
            Generation::Old => "redis",
            Generation::New => "redis-new",
        }
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let namespace = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut options = format!("?namespace=exam-{namespace}");
        if let Some(window) = settings.dedup_window {
            options += &format!("&dedup_window={}ms", window.as_millis());
        }
        if settings.few_kept {
            options += "&retention_messages=64&housekeeping_interval=100ms";
        }
        if settings.own_server {
            let options = options + "&publish_timeout=5s";
            // With `everysec` the server holds back its writes while the disk is busy: messages that it
            // confirmed in that time are lost when it is killed. Only `always` promises the durability that
            // the cases of faults need.
            let start = test_servers::Redis::options().generation(self.0).fsync().start();
            return own_server(start, |server| server.url() + &options);
        }
        let url = wait(test_servers::Redis::shared(self.0)).url();
        Ok(Storage::new(url + &options, ()))
    }

    fn program(&self) -> Option<PathBuf> {
        Some(std::env::current_exe().expect("a running program has a path"))
    }

    fn has_servers(&self) -> bool {
        true
    }
}
