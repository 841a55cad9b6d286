//! Runs the exam on `amqp://` with real servers of both generations, with a vhost for each case.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use event_client::{Error, ErrorKind, Result};
use event_conformance::{Fixture, Settings, Storage};
use test_servers::{Generation, Rabbit};

use crate::servers::{own_server, wait};

pub(crate) struct RabbitMq(pub(crate) Generation);

/// A vhost that is deleted with the case.
struct Vhost(&'static Rabbit, String);

impl Fixture for RabbitMq {
    fn name(&self) -> &str {
        match self.0 {
            Generation::Old => "rabbitmq",
            Generation::New => "rabbitmq-new",
        }
    }

    fn fresh(&self, settings: &Settings) -> Result<Storage> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        if settings.own_server {
            return own_server(Rabbit::options().generation(self.0).start(), Rabbit::url);
        }
        let name = format!("exam-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let server = wait(Rabbit::shared(self.0));
        let url = wait(server.vhost(&name))
            .map_err(|error| Error::new(ErrorKind::Unavailable, "no vhost for the case").because(error))?;
        Ok(Storage::new(url, Vhost(server, name)))
    }

    fn program(&self) -> Option<PathBuf> {
        Some(std::env::current_exe().expect("a running program has a path"))
    }

    fn has_servers(&self) -> bool {
        true
    }
}

impl Drop for Vhost {
    fn drop(&mut self) {
        if let Err(error) = wait(self.0.delete_vhost(&self.1)) {
            eprintln!("a vhost is left behind: {error}");
        }
    }
}
