//! The [`Aggregator`]: opens the store, serves HTTP, consumes log batches from the bus, and shuts down in order.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use event_client::Bus;
use event_client::log::LogRecord;
use service_kit::shutdown::Stop;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{self, App};
use crate::ingest::{Consumer, Ingest};
use crate::live::Live;
use crate::store::{LogStore, Page, Query, RecordBatch, SqliteOptions, SqliteStore};

/// Longest time that viewers get to disconnect at shutdown.
const LEAVING: Duration = Duration::from_secs(2);
/// Upper bound of the setting `max_viewers`.
const MOST_VIEWERS: usize = 100_000;

/// Receives and stores log records, and serves them to viewers.
#[derive(Debug)]
pub struct Aggregator {
    app: Arc<App>,
    store: Arc<dyn LogStore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    consumers: Mutex<Vec<Consumer>>,
}

impl Aggregator {
    /// The durable consumer group in which aggregators [consume log batches](Self::consume) from the bus.
    pub const GROUP: &str = crate::ingest::GROUP;

    /// Opens the store in the configured directory and starts to accept records.
    ///
    /// # Errors
    /// When the directory cannot be used, or when another process uses it.
    pub async fn open(config: Config) -> Result<Self> {
        let options = SqliteOptions { dir: config.dir.clone(), max_day_bytes: config.max_day_bytes };
        let store = SqliteStore::open(options).await?;
        Self::on(config, Arc::new(store)).await
    }

    /// Starts an aggregator on the given store instead of SQLite.
    ///
    /// # Errors
    /// When the HTTP client for `/files` cannot be created.
    pub async fn on(mut config: Config, store: Arc<dyn LogStore>) -> Result<Self> {
        let live = Arc::new(Live::new());
        let (ingest, writer) = Ingest::start(Arc::clone(&store), Arc::clone(&live));
        let files =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().map_err(|e| {
                Error::new(ErrorKind::Config, "cannot create the HTTP client for /files").because(e)
            })?;
        config.max_viewers = config.max_viewers.min(MOST_VIEWERS);
        let viewers = Arc::new(Semaphore::new(config.max_viewers));
        let app = App { config, store: Arc::clone(&store), ingest, live, viewers, files };
        let this =
            Self { app: Arc::new(app), store, writer: Mutex::new(Some(writer)), consumers: Mutex::default() };
        if this.app.config.announce {
            let mut started = LogRecord::new("logthon", "INFO", "Logthon service started");
            started.attributes.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            started.attributes.insert("startup_time".into(), started.time.to_string().into());
            // A store that cannot write at the moment can still be read; each refused record gets its own error.
            if let Err(error) = this.store(vec![started]).await {
                tracing::warn!(error = error.chain(), "cannot store the log record of the start");
            }
        }
        Ok(this)
    }

    /// Returns every route of the API, for merging at the root of a server: Logthon's API under all its paths,
    /// `/api/v1/query` and `/api/v1/tail`. The router does not check the origin or host of a request; the server has
    /// to, as [`serve`](Self::serve) does.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.app))
    }

    /// Serves `router`, which contains the routes of [`router`](Self::router), by the rules of [`service_kit::http`]
    /// until `stop` is requested; then it disconnects the viewers and finishes the open requests.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn serve(
        &self,
        listener: service_kit::http::Listener,
        router: Router,
        stop: Stop,
    ) -> std::result::Result<(), service_kit::Error> {
        let parting = async {
            stop.requested().await;
            self.dismiss_viewers().await;
        };
        let serving = service_kit::http::serve(listener, router, stop.clone());
        tokio::join!(serving, parting).0
    }

    /// Closes every WebSocket with code 1001 and ends every tail; returns when all viewers have disconnected, after 2
    /// s at most.
    async fn dismiss_viewers(&self) {
        self.app.live.close();
        let all = u32::try_from(self.app.config.max_viewers).unwrap_or(u32::MAX);
        // A viewer that is still connected then is disconnected when the server closes its connection.
        drop(tokio::time::timeout(LEAVING, self.app.viewers.acquire_many(all)).await);
    }

    /// Consumes the log batches that services publish on the bus, as a member of the durable group `log-aggregator`
    /// on `logs.>`. A batch is acknowledged after it is stored durably, so the bus is the buffer; a batch that is
    /// delivered twice is stored once. A batch that cannot be decoded becomes a dead letter; a batch that cannot be
    /// stored at the moment is retried until it can.
    ///
    /// # Errors
    /// When the bus refuses the subscription.
    pub async fn consume(&self, bus: &Bus) -> Result<()> {
        let consumer = Consumer::start(bus, self.app.ingest.clone()).await?;
        self.consumers.lock().await.push(consumer);
        Ok(())
    }

    /// Stores records of this process; returns when they are durable.
    ///
    /// # Errors
    /// When the queue is full, the store cannot write, or the aggregator shuts down; then no record was stored.
    pub async fn store(&self, records: Vec<LogRecord>) -> Result<()> {
        self.app.ingest.offer(RecordBatch { delivery: None, records }).await
    }

    /// Runs a query on the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn query(&self, query: Query) -> Result<Page> {
        self.store.select(query).await
    }

    /// Returns the number of stored records of each service; see [`LogStore::counts`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<std::collections::BTreeMap<String, u64>> {
        self.store.counts().await
    }

    /// Returns the number of stored records.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn count(&self) -> Result<u64> {
        Ok(self.store.counts().await?.values().sum())
    }

    /// Shuts down in order: disconnects the viewers, stops accepting records, stores and answers the accepted ones,
    /// closes the store. Call it after the HTTP server has stopped accepting connections; `bound` limits the wait.
    ///
    /// # Errors
    /// When accepted records could not be stored within `bound`; their senders did not receive a success.
    pub async fn drain(&self, bound: Duration) -> Result<()> {
        self.dismiss_viewers().await;
        let Some(writer) = self.writer.lock().await.take() else { return Ok(()) };
        let ended = tokio::time::timeout(bound, async {
            for consumer in self.consumers.lock().await.drain(..) {
                consumer.stop().await;
            }
            self.app.ingest.close();
            let _ = writer.await;
            self.store.close().await;
        });
        ended.await.map_err(|_| {
            Error::new(ErrorKind::Closed, format!("some log records were not stored within {bound:?}"))
        })
    }
}
