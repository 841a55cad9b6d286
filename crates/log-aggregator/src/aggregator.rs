//! The aggregator as a whole: opened, served, fed, and brought to an end.

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

/// How long viewers may take to leave.
const LEAVING: Duration = Duration::from_secs(2);
/// More viewers than this nobody means.
const MOST_VIEWERS: usize = 100_000;

/// Takes, keeps and shows log records.
#[derive(Debug)]
pub struct Aggregator {
    app: Arc<App>,
    store: Arc<dyn LogStore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    consumers: Mutex<Vec<Consumer>>,
}

impl Aggregator {
    /// The durable group in which aggregators [take batches](Self::consume) from the bus.
    pub const GROUP: &str = crate::ingest::GROUP;

    /// Opens the store in the configured directory and starts taking records.
    ///
    /// # Errors
    /// When the directory cannot be used, or another process uses it.
    pub async fn open(config: Config) -> Result<Self> {
        let options = SqliteOptions { dir: config.dir.clone(), max_day_bytes: config.max_day_bytes };
        let store = SqliteStore::open(options).await?;
        Self::on(config, Arc::new(store)).await
    }

    /// The same on another store.
    ///
    /// # Errors
    /// When the HTTP client for `/files` cannot be made.
    pub async fn on(mut config: Config, store: Arc<dyn LogStore>) -> Result<Self> {
        let live = Arc::new(Live::new());
        let (ingest, writer) = Ingest::start(Arc::clone(&store), Arc::clone(&live));
        let files = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| Error::because(ErrorKind::Config, "cannot make the client for /files", e))?;
        config.max_viewers = config.max_viewers.min(MOST_VIEWERS);
        let viewers = Arc::new(Semaphore::new(config.max_viewers));
        let app = App { config, store: Arc::clone(&store), ingest, live, viewers, files };
        let this =
            Self { app: Arc::new(app), store, writer: Mutex::new(Some(writer)), consumers: Mutex::default() };
        if this.app.config.announce {
            let mut started = LogRecord::new("logthon", "INFO", "Logthon service started");
            started.attributes.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            started.attributes.insert("startup_time".into(), started.time.to_string().into());
            // A store that cannot write now still serves what it has; each refusal will say so.
            if let Err(error) = this.store(vec![started]).await {
                tracing::warn!(error = error.chain(), "the start could not be logged");
            }
        }
        Ok(this)
    }

    /// Every route, to be merged at the root of a server: Logthon's API in all its spellings, `/api/v1/query`,
    /// `/api/v1/tail`, and the page. Who may ask is for the server to judge, as [`serve`](Self::serve) does.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.app))
    }

    /// Serves every route, and those of `beside`, by the rules of [`service_kit::http`] until `stop` is requested;
    /// then viewers are sent home and open requests finished.
    ///
    /// # Errors
    /// When the server fails by itself.
    pub async fn serve(
        &self,
        listener: service_kit::http::Listener,
        beside: Router,
        stop: Stop,
    ) -> std::result::Result<(), service_kit::Error> {
        let parting = async {
            stop.requested().await;
            self.dismiss_viewers().await;
        };
        let serving = service_kit::http::serve(listener, self.router().merge(beside), stop.clone());
        tokio::join!(serving, parting).0
    }

    /// Ends every WebSocket, with code 1001, and every tail, and returns when they have left or 2 s are over.
    async fn dismiss_viewers(&self) {
        self.app.live.close();
        let all = u32::try_from(self.app.config.max_viewers).unwrap_or(u32::MAX);
        // Whoever has not left by then is cut with its connection.
        drop(tokio::time::timeout(LEAVING, self.app.viewers.acquire_many(all)).await);
    }

    /// Takes the log batches that services ship over the bus, as a member of the durable group `log-aggregator` on
    /// `logs.>`. A batch is acknowledged when it is durable here, so the bus is the buffer; one that comes twice is
    /// kept once. What cannot be read becomes a dead letter; what cannot be stored now is tried again until it can.
    ///
    /// # Errors
    /// When the bus refuses the subscription.
    pub async fn consume(&self, bus: &Bus) -> Result<()> {
        let consumer = Consumer::start(bus, self.app.ingest.clone()).await?;
        self.consumers.lock().await.push(consumer);
        Ok(())
    }

    /// Keeps records of this very process; returns when they are durable.
    ///
    /// # Errors
    /// When the queue is full, the store cannot write, or the aggregator shuts down; then nothing was kept.
    pub async fn store(&self, records: Vec<LogRecord>) -> Result<()> {
        self.app.ingest.offer(RecordBatch { delivery: None, records }).await
    }

    /// Asks the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn query(&self, query: Query) -> Result<Page> {
        self.store.select(query).await
    }

    /// How many records of each service are kept; see [`LogStore::counts`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn counts(&self) -> Result<std::collections::BTreeMap<String, u64>> {
        self.store.counts().await
    }

    /// How many records are kept.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn count(&self) -> Result<u64> {
        Ok(self.store.counts().await?.values().sum())
    }

    /// Ends in order: viewers are sent home, nothing more is taken, what was taken is stored and answered, the
    /// store is closed. Call it after the HTTP server has stopped accepting; `bound` limits the wait.
    ///
    /// # Errors
    /// When what was taken could not be stored within `bound`; its senders were not told that it was.
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
        ended
            .await
            .map_err(|_| Error::new(ErrorKind::Closed, format!("log records still wait after {bound:?}")))
    }
}
