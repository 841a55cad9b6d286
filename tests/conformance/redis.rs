//! `redis://` takes the exam on a real server that all cases share, with a namespace for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::Result;
use event_conformance::{Fixture, Settings, Storage};
use test_servers::Generation;

use crate::servers::{own_server, wait};

/// One generation of the server.
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
            options += "&retention_messages=64&housekeeping=100ms";
        }
        if settings.own_server {
            let options = options + "&publish_timeout=5s";
            // With `everysec` the server holds its writes back while the disk is busy: what it confirmed in that moment
            // goes with it when it is killed. Only `always` promises what the cases of faults ask for.
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
