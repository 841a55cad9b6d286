//! Starts the store behind a transport, and gives each measurement an empty place in it.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tempfile::TempDir;
use test_servers::Generation;

use super::row::Bus;
use crate::contestant::Durability;
use crate::servers::Server;

/// The option of the brokers' URLs for measurements. The last publish of a full window waits for all before it, each of
/// which may create a topic or reach a hundred queues: that takes longer than the default on a busy machine.
const PATIENT: &str = "publish_timeout=2m";

/// The place of one measurement, which no other measurement uses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Place {
    /// The name of the place in the store.
    pub name: String,
    /// The URL of the transport.
    pub url: String,
    /// The process of the broker, if there is one.
    pub server: Option<u32>,
    /// The SQLite file, if there is one.
    pub file: Option<PathBuf>,
}

/// A running store.
pub struct Store {
    bus: Bus,
    durability: Durability,
    server: Option<Server>,
    folder: TempDir,
}

impl Store {
    /// Starts the broker of `bus`, if it needs one.
    pub async fn start(bus: Bus, generation: Generation, durability: Durability) -> Result<Self> {
        let server = match bus.broker() {
            Some(broker) => Some(Server::start(broker, generation, durability).await?),
            None => None,
        };
        Ok(Self { bus, durability, server, folder: tempfile::Builder::new().prefix("bus-bench-").tempdir()? })
    }

    /// Returns the transport of this store.
    pub fn bus(&self) -> Bus {
        self.bus
    }

    /// Returns an empty place.
    pub async fn place(&self, name: &str) -> Result<Place> {
        let fsync = self.durability == Durability::Fsync;
        let mut place = Place { name: name.to_owned(), url: String::new(), server: None, file: None };
        place.url = match (&self.server, self.bus) {
            // The defaults of `memory:` would refuse a backlog of a million messages.
            (None, Bus::Memory) => "memory:growth?max_messages=8000000&max_bytes=17179869184".to_owned(),
            (None, _) => {
                let file = self.folder.path().join(name).join("bus.db");
                std::fs::create_dir(self.folder.path().join(name))?;
                let synchronous = if fsync { "full" } else { "normal" };
                let url = format!("sqlite:{}?synchronous={synchronous}", file.display());
                place.file = Some(file);
                url
            }
            (Some(server), bus) => {
                place.server = Some(server.process()?);
                // JetStream does not report to its clients how it syncs.
                let sync = if fsync && bus == Bus::Nats { "&sync=always" } else { "" };
                format!("{}?{PATIENT}{sync}", server.url(name).await?)
            }
        };
        Ok(place)
    }

    /// Removes everything in `place`.
    pub async fn clear(&self, place: &Place) -> Result<()> {
        if let Some(server) = &self.server {
            server.clear(&place.name).await?;
        } else if place.file.is_some() {
            std::fs::remove_dir_all(self.folder.path().join(&place.name))?;
        }
        Ok(())
    }
}

impl Place {
    /// Returns the bytes of all pages of the SQLite file, or `None` for another transport. Pages that are still in the
    /// write-ahead log are included, so that a checkpoint between two calls makes no difference.
    pub async fn file_size(&self) -> Result<Option<u64>> {
        let Some(file) = &self.file else { return Ok(None) };
        let mut connection = SqliteConnectOptions::new().filename(file).read_only(true).connect().await?;
        let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let bytes: i64 = sqlx::query_scalar(pages).fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(Some(bytes.try_into()?))
    }
}
